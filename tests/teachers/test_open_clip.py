"""CLIPs as teachers: zero-shot is the model's own, only safetensors and files that are here are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip as library
import pytest
import torch
from hub_mirror import hub_of
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_models import CLIP_CONFIG, saved_clip, saved_timm
from torch.nn import functional as F

from sweeper.errors import InputError, RunFailed
from sweeper.teachers import open_clip

NAMES = ("black_cat", "dog", "fire_truck")
MEAN, STD = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.4, 0.5, 0.6])[:, None, None]
TIMM_TOWER = {"timm_model_name": "test_resnet", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
RESNET_TOWER = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder in open_clip's format, and its model."""
    folder = tmp_path_factory.mktemp("clip") / "model"
    return folder, saved_clip(folder)


@pytest.fixture
def tiny_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny CLIP among open_clip's own architectures, with one tag."""
    (tmp_path / "tiny-test.json").write_text(json.dumps(CLIP_CONFIG))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {})
    library.add_model_config(tmp_path / "tiny-test.json")
    tag = {"hf_hub": "someone/tiny/", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "quick_gelu": True}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "tiny-test", {"a_tag": tag})
    return "tiny-test"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    root = tmp_path / "hub"
    with hub_of(root, monkeypatch) as asked:
        yield root, asked


def config(folder: Path, **fields: Any) -> open_clip.Config:
    return open_clip.Config(weights=str(folder), **fields)


def texts(model: Any, *prompts: str) -> torch.Tensor:
    tokenizer = library.SimpleTokenizer(context_length=24)
    with torch.no_grad():
        embedded: torch.Tensor = model.encode_text(tokenizer(list(prompts)), normalize=True)
    return embedded


def test_zero_shot_is_what_the_model_itself_says_of_images_and_texts(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    teacher = open_clip.build(config(folder), NAMES)
    images = torch.rand(5, 3, 32, 32)
    spoken = ("a photo of a black cat", "a photo of a dog", "a photo of a fire truck")
    tokens = library.SimpleTokenizer(context_length=24)(list(spoken))
    with torch.no_grad():
        wanted, _ = model.get_logits((images - MEAN) / STD, tokens)
        found = teacher(images)
    assert float(wanted.std(dim=1).min()) > 1e-3, "the classes differ"
    torch.testing.assert_close(found.logits_BK, wanted)
    torch.testing.assert_close(found.embedding_BD.norm(dim=1), torch.ones(5))
    assert found.embedding_BD.shape == (5, teacher.embedding_dim) == (5, 24)
    assert teacher.classifier is not None
    torch.testing.assert_close(teacher.classifier(found.embedding_BD), found.logits_BK, rtol=0, atol=0)
    assert not teacher.classifier.bias.any()
    assert (teacher.classes, teacher.input_size) == (3, 32)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.head_seconds > 0


def test_several_prompts_are_averaged_on_the_sphere(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    prompts = ("a photo of a {label}", "the {label}, or {label}")
    teacher = open_clip.build(config(folder, prompts=prompts), NAMES)
    means = [
        F.normalize(texts(model, f"a photo of a {name}", f"the {name}, or {name}").mean(dim=0), dim=0)
        for name in ("black cat", "dog", "fire truck")
    ]
    assert teacher.classifier is not None
    torch.testing.assert_close(teacher.classifier.weight, model.logit_scale.exp().detach() * torch.stack(means))


@pytest.mark.parametrize("way", ["linear_probe", "fine_tune"])
def test_a_teacher_that_is_adapted_reads_no_text(
    clip: tuple[Path, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(library, "get_tokenizer")
    teacher = open_clip.build(config(clip[0], adapt=way), NAMES)
    assert teacher(torch.rand(1, 3, 32, 32)).logits_BK is None
    assert teacher.classes is None
    assert teacher.head_seconds == 0


def test_the_text_tower_is_gone(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    teacher = open_clip.build(config(folder), NAMES)
    kept = {name for name, _ in teacher.named_parameters()}
    assert kept == {f"visual.{name}" for name, _ in model.visual.named_parameters()} | {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize(("vision", "count"), [(CLIP_CONFIG["vision_cfg"], 2), (TIMM_TOWER, 4), (RESNET_TOWER, 4)])
def test_taps_are_those_of_the_tower(tmp_path: Path, vision: dict[str, Any], count: int) -> None:
    model = saved_clip(tmp_path / "clip", vision_cfg=vision)
    teacher = open_clip.build(config(tmp_path / "clip"), NAMES)
    images, shapes = torch.rand(2, 3, 32, 32), teacher.tap_points.shapes
    with torch.no_grad():
        plain, tapped = teacher(images), teacher(images, pre=True, num_maps=len(shapes))
        features = model.encode_image((images - MEAN) / STD)
    assert len(shapes) == count
    assert [tuple(part.shape[1:]) for part in tapped.maps] == list(shapes)
    assert tapped.pre_embedding_BD is not None
    torch.testing.assert_close(tapped.pre_embedding_BD, features)
    torch.testing.assert_close(F.normalize(features, dim=1), tapped.embedding_BD)
    torch.testing.assert_close(plain.embedding_BD, tapped.embedding_BD)
    assert plain.pre_embedding_BD is None
    assert plain.maps == ()
    with pytest.raises(InputError, match=rf"offers {len(shapes)} intermediate maps, {len(shapes) + 1} are needed"):
        teacher(images, num_maps=len(shapes) + 1)


def test_the_sketch_has_the_shapes_and_reads_no_weights(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "no weights"
    saved_clip(folder)
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    built = open_clip.build(config(clip[0]), NAMES)
    with torch.device("meta"):
        sketch = open_clip.sketch(config(folder), NAMES)
    assert (sketch.embedding_dim, sketch.input_size) == (built.embedding_dim, built.input_size)
    assert sketch.tap_points.shapes == built.tap_points.shapes
    small, large = (open_clip.flops_an_image(config(folder, input_size=size), NAMES) for size in (32, 64))
    assert small is not None
    assert large is not None
    assert large > 3 * small


def test_the_input_size_can_be_chosen(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    teacher = open_clip.build(config(folder, input_size=64), NAMES)
    assert teacher.input_size == 64
    assert teacher.visual.positional_embedding.shape[0] == 65 > model.visual.positional_embedding.shape[0]
    assert teacher(torch.rand(1, 3, 64, 64)).embedding_BD.shape == (1, 24)


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator_alone(tiny_name: str) -> None:
    random = open_clip.Config(model=tiny_name, weights="none")
    torch.manual_seed(3)
    first, follows = open_clip.build(random, NAMES), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(follows, torch.rand(1))
    for one, other in zip(first.parameters(), open_clip.build(random, NAMES).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_file_of_weights_is_read_into_the_named_model(clip: tuple[Path, Any], tiny_name: str) -> None:
    folder, _ = clip
    named = open_clip.Config(model=tiny_name, weights=str(folder / "open_clip_model.safetensors"))
    images = (torch.rand(2, 3, 32, 32) - MEAN) / STD
    found = open_clip.build(named, NAMES).visual(images)
    torch.testing.assert_close(found, open_clip.build(config(folder), NAMES).visual(images))


def test_a_model_of_the_hub_is_the_one_of_its_folder(hub: tuple[Path, list[str]], clip: tuple[Path, Any]) -> None:
    root, asked = hub
    saved_clip(root / "someone" / "their-clip")
    images = torch.rand(2, 3, 32, 32)
    teacher = open_clip.build(open_clip.Config(weights="hf-hub:someone/their-clip"), NAMES)
    assert "someone/their-clip/open_clip_model.safetensors" in asked
    torch.testing.assert_close(teacher(images).logits_BK, open_clip.build(config(clip[0]), NAMES)(images).logits_BK)
    asked.clear()
    (root / "someone" / "their-clip" / "open_clip_config.json").rename(root / "kept")
    for make in (open_clip.build, open_clip.sketch):
        with pytest.raises(RunFailed, match=r"'hf-hub:someone/nothing' .*could not be fetched from the hub.*folder"):
            make(open_clip.Config(weights="hf-hub:someone/nothing"), NAMES)


def test_the_sketch_of_a_hub_id_fetches_its_config_alone(hub: tuple[Path, list[str]]) -> None:
    root, asked = hub
    saved_clip(root / "someone" / "their-clip")
    assert open_clip.sketch(open_clip.Config(weights="hf-hub:someone/their-clip"), NAMES).embedding_dim == 24
    assert asked == ["someone/their-clip/open_clip_config.json"]


def test_a_hub_id_without_weights_is_never_a_random_model(hub: tuple[Path, list[str]]) -> None:
    root, _ = hub
    saved_clip(root / "someone" / "their-clip")
    (root / "someone" / "their-clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(RunFailed, match="could not be fetched from the hub"):
        open_clip.build(open_clip.Config(weights="hf-hub:someone/their-clip"), NAMES)


def test_a_tag_brings_its_weights_its_preprocessing_and_its_activation(
    hub: tuple[Path, list[str]], tiny_name: str
) -> None:
    root, asked = hub
    model = saved_clip(root / "someone" / "tiny", quick_gelu=True)
    teacher = open_clip.build(open_clip.Config(model=tiny_name, weights="a_tag"), NAMES)
    assert asked == ["someone/tiny/open_clip_model.safetensors"]
    assert teacher.mean == (0.1, 0.2, 0.3)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.encode_image((images - MEAN) / STD, normalize=True)
    torch.testing.assert_close(teacher(images).embedding_BD, wanted)


def test_weights_that_were_trained_with_another_activation_are_refused(
    tiny_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-test.json").write_text(json.dumps({**CLIP_CONFIG, "quick_gelu": True}))
    library.add_model_config(tmp_path / "tiny-test.json")
    monkeypatch.setitem(library.pretrained._PRETRAINED, "tiny-test", {"a_tag": {"hf_hub": "someone/tiny/"}})
    with pytest.raises(InputError, match="'a_tag' was trained without QuickGELU"):
        open_clip.build(open_clip.Config(model=tiny_name, weights="a_tag"), NAMES)


def test_identity_follows_the_contents_and_not_the_place(clip: tuple[Path, Any], tmp_path: Path) -> None:
    for place in ("one", "two"):
        saved_clip(tmp_path / place)
    one, two = (open_clip.identity(config(tmp_path / place)) for place in ("one", "two"))
    assert one == two
    assert str(tmp_path) not in json.dumps(one)
    assert one == open_clip.identity(config(tmp_path / "one", trust=True))
    for change in ({"prompts": ("one {label}",)}, {"adapt": "linear_probe"}, {"input_size": 64}):
        assert open_clip.identity(config(tmp_path / "one", **change)) != one
    path = tmp_path / "two" / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert open_clip.identity(config(tmp_path / "two")) != one
    files = [open_clip.Config(model="ViT-B-32", weights=str(tmp_path / p / path.name)) for p in ("one", "two")]
    assert open_clip.identity(files[0]) != open_clip.identity(files[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weights": "laion2b_s34b_b79k"}, "needs the name of an open_clip model"),
        ({"weights": "none"}, "needs the name of an open_clip model"),
        ({"weights": "some/clip.safetensors"}, "needs the name of an open_clip model"),
        ({"weights": "hf-hub:a/b", "model": "ViT-B-32"}, "says its own; leave `model` out"),
        ({"weights": "./folder", "model": "ViT-B-32"}, "says its own; leave `model` out"),
        ({"weights": "./folder", "prompts": ("a photo",)}, "'a photo' does not say where the class goes"),
        ({"weights": "./folder", "prompts": ()}, "at least 1 item"),
        ({"weights": "./folder", "prompts": ("{label}",), "adapt": "linear_probe"}, "only adapt: none"),
    ],
)
def test_sections_that_mean_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        open_clip.Config(**fields)


def test_names_that_are_unknown_get_the_nearest_ones() -> None:
    for make in (open_clip.build, open_clip.sketch):
        with pytest.raises(InputError, match=r"'ViT-B-23' is not an open_clip model; the nearest are ViT-"):
            make(open_clip.Config(model="ViT-B-23", weights="none"), NAMES)
        with pytest.raises(InputError, match=r"'laion' is not a tag of 'ViT-B-32'; its tags are .*laion2b_s34b_b79k"):
            make(open_clip.Config(model="ViT-B-32", weights="laion"), NAMES)
    with pytest.raises(InputError, match="the text tower of 'roberta-ViT-B-32' is a model of transformers"):
        open_clip.build(open_clip.Config(model="roberta-ViT-B-32", weights="none"), NAMES)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    cases = {str(tmp_path / "nothing"): "does not exist", str(tmp_path): r"has no open_clip_config\.json"}
    for place, reason in cases.items():
        with pytest.raises(InputError, match=f"weights: .* {reason}; allowed: none, a tag of open_clip, hf-hub:"):
            open_clip.identity(config(Path(place)))


def test_weights_that_do_not_fit_are_refused(clip: tuple[Path, Any], tmp_path: Path, tiny_name: str) -> None:
    folder = tmp_path / "clip"
    saved_clip(folder)
    path = folder / "open_clip_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "ln_post" not in name}, path)
    with pytest.raises(InputError, match="does not fit its own config"):
        open_clip.build(config(folder), NAMES)
    with pytest.raises(InputError, match="does not fit tiny-test"):
        open_clip.build(open_clip.Config(model=tiny_name, weights=str(path)), NAMES)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="can not be read"):
        open_clip.build(config(folder), NAMES)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"open_clip_config\.json is not open_clip's"):
        open_clip.build(config(folder), NAMES)
    saved_timm(tmp_path / "timm", "test_vit", 3)
    with pytest.raises(InputError, match=r"has no open_clip_config\.json"):
        open_clip.build(config(tmp_path / "timm"), NAMES)


def test_a_tokenizer_of_transformers_has_to_be_in_the_folder(tmp_path: Path) -> None:
    text = {**CLIP_CONFIG["text_cfg"], "hf_tokenizer_name": "someone/tokenizer"}
    saved_clip(tmp_path / "clip", text_cfg=text)
    with pytest.raises(InputError, match=r"has no tokenizer that can be read .*or say adapt: linear_probe"):
        open_clip.build(config(tmp_path / "clip"), NAMES)
    assert open_clip.build(config(tmp_path / "clip", adapt="linear_probe"), NAMES).classifier is None
    with pytest.raises(InputError, match=r"needs the tokenizer 'timm/.*', which only a folder may bring"):
        open_clip.build(open_clip.Config(model="ViT-B-16-SigLIP", weights="webli"), NAMES)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_a_pickle_is_not_read_and_its_code_does_not_run(tmp_path: Path, hub: tuple[Path, list[str]]) -> None:
    exploded = tmp_path / "exploded"
    folder = hub[0] / "someone" / "clip"
    saved_clip(folder)
    path = folder / "open_clip_model.safetensors"
    torch.save({**load_file(path), "bomb": Bomb(exploded)}, folder / "open_clip_pytorch_model.bin")
    path.unlink()
    with pytest.raises(InputError, match=r"has no safetensors; save the weights as safetensors, or say `trust: true`"):
        open_clip.build(config(folder), NAMES)
    with pytest.raises(InputError, match=r"weights: hf-hub:someone/clip: the weights are a pickle"):
        open_clip.build(open_clip.Config(weights="hf-hub:someone/clip"), NAMES)
    pickle = folder / "open_clip_pytorch_model.bin"
    with pytest.raises(InputError, match=r"is not a \.safetensors file; .*trust: true"):
        open_clip.build(open_clip.Config(model="ViT-B-32", weights=str(pickle)), NAMES)
    for trusted in (config(folder, trust=True), open_clip.Config(weights="hf-hub:someone/clip", trust=True)):
        with pytest.raises(InputError, match="can not be read"):
            open_clip.build(trusted, NAMES)
    assert not exploded.exists()


def test_a_pickle_of_tensors_is_read_where_it_is_trusted(tmp_path: Path, clip: tuple[Path, Any]) -> None:
    folder = tmp_path / "clip"
    saved_clip(folder)
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()
    found = open_clip.build(config(folder, trust=True), NAMES)
    for one, other in zip(found.parameters(), open_clip.build(config(clip[0]), NAMES).parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_stand_in_is_small_and_what_is_here_stays_itself(
    tmp_path: Path, clip: tuple[Path, Any], tiny_name: str
) -> None:
    asked = open_clip.Config(model=tiny_name, weights="a_tag", prompts=("one {label}",))
    stand_in = open_clip.stand_in(asked, tmp_path / "stand-in", len(NAMES))
    assert stand_in.prompts == asked.prompts
    assert open_clip.build(open_clip.Config.model_validate(stand_in.model_dump()), NAMES).classes == 3
    assert open_clip.stand_in(config(clip[0]), tmp_path / "none", 3) == config(clip[0])
    with pytest.raises(InputError, match="'no_tag' is not a tag of 'tiny-test'"):
        open_clip.stand_in(open_clip.Config(model=tiny_name, weights="no_tag"), tmp_path, 3)
