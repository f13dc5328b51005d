"""Students: equal to their timm model, seeded, refused clearly, and loadable by timm alone."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load as load_safetensors
from torch import nn

from sweeper import architecture
from sweeper import student as students
from sweeper.errors import InputError
from sweeper.trial import StudentConfig

ARCHITECTURES = ["test_resnet", "test_efficientnet", "test_vit"]
CLASS_NAMES = ("ant", "bee", "cat", "dog")
torch.set_num_threads(1)


def build(model="test_resnet", num_classes=4, image_size=32, seed=0, **fields):
    return students.build(StudentConfig(model=model, **fields), num_classes, image_size, seed)


def draw_images(batch=3, size=32):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


def export_to(folder, student, class_names=CLASS_NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in students.export(student, class_names).items():
        (folder / name).write_bytes(data)
    return folder


def trained(student):
    """A student whose every weight and running statistic has left its initial value."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    for _ in range(2):
        student.train()(draw_images(8)).logits_BK.square().mean().backward()
        optimizer.step()
    return student.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestEachArchitecture:
    def test_outputs_are_those_of_timm(self, architecture):
        student = build(architecture)
        assert student.training
        student.eval()
        images = draw_images()
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (student.mean, student.std))
        reference = timm.create_model(architecture, num_classes=4, **student.model_args).eval()
        reference.load_state_dict(student.model.state_dict())
        with torch.no_grad():
            out = student(images)
            assert torch.equal(out.logits_BK, reference((images - mean) / std))
            torch.testing.assert_close(student.model.get_classifier()(out.embedding_BD), out.logits_BK)
        assert out.embedding_BD.shape == (3, student.embedding_dim)
        assert out.logits_BK.shape == (3, student.num_classes) == (3, 4)
        data_config = timm.data.resolve_model_data_config(reference)
        assert (student.mean, student.std) == (data_config["mean"], data_config["std"])
        assert student.num_parameters == sum(p.numel() for p in reference.parameters())

    def test_timm_alone_loads_the_export(self, architecture, tmp_path):
        student = trained(build(architecture))
        folder = export_to(tmp_path / "a student", student)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        data_config = timm.data.resolve_model_data_config(model)
        assert tuple(data_config["input_size"]) == (3, 32, 32)
        mean, std = (torch.tensor(data_config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        images = draw_images()
        with torch.no_grad():
            assert torch.equal(model((images - mean) / std), student(images).logits_BK)
        assert tuple(model.pretrained_cfg["label_names"]) == CLASS_NAMES

    def test_timms_transform_repeats_the_preprocessing(self, architecture, tmp_path):
        student = build(architecture)
        model = timm.create_model(f"local-dir:{export_to(tmp_path, student)}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        square = image.resize((51, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32))
        expected = student.normalise(torch.tensor(np.asarray(square) / 255).permute(2, 0, 1).float())
        torch.testing.assert_close(transform(image), expected)

    def test_load_gives_the_student_back(self, architecture, tmp_path):
        student = trained(build(architecture, image_size=48))
        folder = export_to(tmp_path, student)
        loaded = students.load(folder)
        assert not loaded.training
        assert (loaded.image_size, loaded.embedding_dim, loaded.mean) == (48, student.embedding_dim, student.mean)
        with torch.no_grad():
            for given, expected in zip(
                loaded(draw_images(size=48))[:2], student(draw_images(size=48))[:2], strict=True
            ):
                assert torch.equal(given, expected)
        assert students.export(loaded, CLASS_NAMES) == students.export(student, CLASS_NAMES)

    def test_seed_decides_the_weights_and_nothing_else_moves(self, architecture):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        first = build(architecture, seed=3).state_dict()
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
        torch.manual_seed(2)
        again, other = build(architecture, seed=3).state_dict(), build(architecture, seed=4).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_fixed_input_size_follows_the_images():
    vit = build("test_vit", image_size=48)
    assert vit.model_args == {"img_size": 48}
    assert vit.eval()(draw_images(size=48)).logits_BK.shape == (3, 4)
    assert build("test_resnet").model_args == {}


def test_model_args_reach_the_model_and_the_export(tmp_path):
    student = build("test_vit", model_args={"patch_size": 8, "drop_rate": 0.5}).eval()
    assert student.model.patch_embed.patch_size == (8, 8)
    config = json.loads(students.export(student, CLASS_NAMES)["config.json"])
    assert config["model_args"] == {"patch_size": 8, "drop_rate": 0.5, "img_size": 32}
    loaded = students.load(export_to(tmp_path, student))
    assert torch.equal(loaded(draw_images()).logits_BK, student(draw_images()).logits_BK)


def test_config_json_says_what_it_is():
    student = build("test_efficientnet")
    files = students.export(student, CLASS_NAMES)
    config = json.loads(files["config.json"])
    assert config["architecture"] == "test_efficientnet"
    assert (config["num_classes"], config["num_features"]) == (4, student.embedding_dim)
    assert config["label_names"] == list(CLASS_NAMES)
    assert config["pretrained_cfg"]["num_classes"] == 4
    assert config["pretrained_cfg"]["mean"] == list(student.mean)
    assert load_safetensors(files["model.safetensors"]).keys() == student.model.state_dict().keys()
    with pytest.raises(ValueError, match="3 class names for 4 classes"):
        students.export(student, CLASS_NAMES[:3])


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_pretrained_from_a_folder(architecture, prefix, tmp_path):
    source = trained(build(architecture))
    model = f"{prefix}{export_to(tmp_path / 'source', source)}"
    same = build(model, init="pretrained").eval()
    assert torch.equal(same(draw_images()).logits_BK, source(draw_images()).logits_BK)
    wider = build(model, num_classes=7, init="pretrained").eval()
    assert torch.equal(wider(draw_images()).embedding_BD, source(draw_images()).embedding_BD)
    assert wider(draw_images()).logits_BK.shape == (3, 7)
    fresh = build(model, init="random").eval()
    assert fresh.architecture == architecture
    assert torch.equal(fresh(draw_images()).logits_BK, build(architecture).eval()(draw_images()).logits_BK)
    larger = build(model, image_size=64, init="pretrained")
    assert larger.eval()(draw_images(size=64)).logits_BK.shape == (3, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "test_resnt"}, "'test_resnt' is not an architecture of timm; did you mean 'test_resnet'"),
        ({"model": "Test_ViT5"}, "did you mean 'test_vit'"),
        ({"model": "????"}, r"timm.list_models\(\) lists them"),
        ({"model": "test_vit.no_such_tag"}, r"not among timm's weights; allowed: test_vit\.r160_in1k"),
        ({"model": "vit_tiny_r_s16_p8_224.x"}, "not among timm's weights"),
        ({"model": "./no/such/folder"}, "is not a folder of a timm model"),
        (
            {"model": "test_vit", "model_args": {"num_classes": 3, "img_size": 9}},
            "sweeper decides img_size, num_classes",
        ),
    ],
)
def test_check_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        architecture.check(StudentConfig(**fields))


def test_check_refuses_pretrained_without_weights(tmp_path):
    folder = export_to(tmp_path, build())
    architecture.check(StudentConfig(model=str(folder), init="pretrained"))
    (folder / "model.safetensors").unlink()
    architecture.check(StudentConfig(model=str(folder)))
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        architecture.check(StudentConfig(model=str(folder), init="pretrained"))
    with_none = next(name for name in timm.list_models("efficientnet_*") if not timm.list_pretrained(f"{name}.*"))
    with pytest.raises(InputError, match=f"no weights of '{with_none}'"):
        architecture.check(StudentConfig(model=with_none, init="pretrained"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "test_resnet", "model_args": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"model": "deit_tiny_distilled_patch16_224"}, "does not end in one linear classifier"),
        ({"model": "test_resnet", "model_args": {"global_pool": ""}}, "test_resnet"),
        ({"model": "test_vit", "image_size": 8}, "'test_vit'"),
    ],
)
def test_build_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        build(**fields)


class _LateDropout(nn.Module):
    """A model that drops features between `pre_logits` and its classifier."""

    def __init__(self, offset):
        super().__init__()
        self.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.fc, self.drop, self.offset = nn.Linear(3, 4), nn.Dropout(0.5), offset

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.fc(self.drop(x)) + self.offset

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_embedding_that_is_not_the_classifiers_input_is_refused(offset):
    student = students.Student(_LateDropout(offset), "late_dropout", {}, 32)
    if offset == 0:
        student.model.drop.p = 0.0
        students._verify(student)
        student.model.drop.p = 0.5
    with pytest.raises(InputError, match="are not its classifier on a pooled feature"):
        students._verify(student)


def test_broken_folder_is_refused(tmp_path):
    folder = export_to(tmp_path, build())
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="timm cannot load this student"):
        students.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not a folder of a timm model"):
        students.load(folder)


def test_nothing_is_printed():
    program = (
        "from sweeper import student as s\n"
        "from sweeper.trial import StudentConfig\n"
        "import tempfile, pathlib\n"
        "for name in ('test_vit', 'test_resnet', 'mobilenetv2_035'):\n"
        "    built = s.build(StudentConfig(model=name), 4, 32, 0)\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        for file, data in s.export(built, 'abcd').items():\n"
        "            pathlib.Path(folder, file).write_bytes(data)\n"
        "        s.load(folder)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_timm_logs_again_afterwards():
    level = logging.getLogger("timm").level
    with architecture.quiet_timm():
        assert logging.getLogger("timm").level == logging.ERROR
    assert logging.getLogger("timm").level == level
