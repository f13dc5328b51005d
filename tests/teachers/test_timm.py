"""timm teachers: the classifier sits on the embedding exactly, and every mistake says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm as timm_library
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from sweeper.errors import InputError, RunFailed
from sweeper.teachers import timm

TEN = tuple("0123456789")
ARCHITECTURES = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "mobilenetv3_small_050")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(folder: Path, name: str = "test_resnet", num_classes: int = 10) -> torch.nn.Module:
    """A folder in timm's format with half-precision weights, and its model."""
    torch.manual_seed(5)
    model = timm_library.create_model(name, num_classes=num_classes).eval()
    model.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    folder.mkdir(exist_ok=True)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        folder / "model.safetensors",
    )
    save_config_for_hf(model, str(folder / "config.json"))
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_the_classifier_of_the_embedding_and_of_timm(name: str) -> None:
    teacher = timm.build(timm.Config(model=name, weights="none", adapt="none"), TEN)
    images = torch.rand(3, 3, teacher.input_size, teacher.input_size)
    with torch.no_grad():
        logits, embedding = teacher(images)[:2]
        mean, std = (torch.tensor(value)[:, None, None] for value in (teacher.mean, teacher.std))
        wanted = teacher.model((images - mean) / std)
    assert embedding.shape == (3, teacher.embedding_dim)
    assert logits is not None
    assert teacher.classifier is not None
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(logits, teacher.classifier(embedding))
    assert teacher.classes == 10
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator_alone() -> None:
    config = timm.Config(model="test_resnet", weights="none")
    torch.manual_seed(3)
    first, follows = timm.build(config, TEN), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(follows, torch.rand(1))
    for one, other in zip(first.parameters(), timm.build(config, TEN).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_folder_gives_its_model_back_in_single_precision(tmp_path: Path) -> None:
    model = saved(tmp_path / "teacher")
    teacher = timm.build(timm.Config(weights=str(tmp_path / "teacher"), adapt="none"), TEN)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).logits_BK, model((images - 0.5) / 0.5))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


@pytest.mark.parametrize("num_classes", [10, 0])
def test_a_state_dict_gives_its_model_back(tmp_path: Path, num_classes: int) -> None:
    model = saved(tmp_path, num_classes=num_classes)
    config = timm.Config(model="test_resnet", weights=str(tmp_path / "model.safetensors"))
    teacher = timm.build(config, TEN)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        output = teacher(images)
        head_input = model.forward_head(model.forward_features((images - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(output.embedding_BD, head_input)
    assert (output.logits_BK is None) == (num_classes == 0)


def test_a_head_of_other_classes_is_dropped_or_refused(tmp_path: Path) -> None:
    saved(tmp_path, num_classes=7)
    probed = timm.build(timm.Config(weights=str(tmp_path), adapt="linear_probe"), TEN)
    assert probed(torch.rand(1, 3, 160, 160)).logits_BK is None
    assert probed.classes is None
    with pytest.raises(InputError, match=r"10 classes, but .* has 7 classes; use adapt: linear_probe"):
        timm.build(timm.Config(weights=str(tmp_path), adapt="none"), TEN)


def test_a_new_classifier_reads_the_embedding() -> None:
    teacher = timm.build(timm.Config(model="test_resnet", weights="none"), TEN)
    weight, bias = torch.rand(4, teacher.embedding_dim), torch.rand(4)
    output = teacher.with_classifier(weight, bias)(torch.rand(2, 3, 160, 160))
    torch.testing.assert_close(output.logits_BK, output.embedding_BD @ weight.T + bias)
    assert teacher.classes == 4
    with pytest.raises(ValueError, match="features"):
        teacher.with_classifier(torch.rand(4, 3), bias)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_input_size_can_be_chosen(name: str) -> None:
    teacher = timm.build(timm.Config(model=name, weights="none", input_size=32), TEN)
    assert teacher.input_size == 32
    assert teacher(torch.rand(1, 3, 32, 32)).embedding_BD.shape == (1, teacher.embedding_dim)


def test_model_args_decide_the_input_size() -> None:
    config = timm.Config(model="test_vit", weights="none", model_args={"img_size": 48})
    assert timm.build(config, TEN).input_size == 48


def test_identity_follows_the_contents_and_not_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        saved(tmp_path / place)
    one, two = (timm.identity(timm.Config(weights=str(tmp_path / place))) for place in ("one", "two"))
    assert one == two
    assert str(tmp_path) not in json.dumps(one)
    weights = tmp_path / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert timm.identity(timm.Config(weights=str(tmp_path / "two"))) != one
    base = timm.Config(model="test_vit", weights="none")
    for change in ({"adapt": "none"}, {"model": "test_resnet"}, {"model_args": {"depth": 2}}, {"input_size": 64}):
        assert timm.identity(base.model_copy(update=change)) != timm.identity(base)


def test_a_name_that_is_unknown_gets_the_nearest_ones() -> None:
    with pytest.raises(InputError, match=r"'test_resnt' is not a timm model; the nearest are test_resnet"):
        timm.build(timm.Config(model="test_resnt", weights="none"), TEN)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "nothing"): "does not exist",
        str(tmp_path): "has no config.json",
        str(tmp_path / "weights.npz"): "is not a .safetensors file",
    }
    (tmp_path / "weights.npz").write_bytes(b"")
    for weights, reason in cases.items():
        with pytest.raises(InputError, match=f"weights: .* {reason}; allowed: hub, none, zoo:NAME"):
            timm.identity(timm.Config(model="test_resnet", weights=weights))
    with pytest.raises(InputError, match="'zoo:cmn' is not in the zoo; did you mean 'zoo:cnn'"):
        timm.identity(timm.Config(weights="zoo:cmn"))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(InputError, match="does not fit 'test_vit'"):
        timm.build(timm.Config(model="test_vit", weights=str(tmp_path / "model.safetensors")), TEN)
    with pytest.raises(InputError, match="holds a 'test_resnet'; leave `model` out"):
        timm.build(timm.Config(model="test_vit", weights=str(tmp_path)), TEN)
    with pytest.raises(InputError, match=r"model_args: \{'depht': 2\} does not fit 'test_vit'"):
        timm.build(timm.Config(model="test_vit", weights="none", model_args={"depht": 2}), TEN)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="local-dir"):
        timm.build(timm.Config(weights=str(tmp_path)), TEN)


@pytest.mark.parametrize("weights", ["hub", "none", "somewhere/model.safetensors"])
def test_only_a_folder_says_its_own_architecture(weights: str) -> None:
    with pytest.raises(ValidationError, match="needs the name of a timm model"):
        timm.Config(weights=weights)


def test_a_hub_that_does_not_answer_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match="'test_resnet' could not be fetched from the hub"):
        timm.build(timm.Config(model="test_resnet", weights="hub"), TEN)


def test_reading_a_space_file_imports_no_heavy_library() -> None:
    code = (
        "import sys; from sweeper.teachers import open_clip, timm; from sweeper.generators import diffusers; "
        "timm.Config(weights='zoo:cnn'); open_clip.Config(weights='./clip'); diffusers.Config(model='zoo:generator'); "
        "print(sorted({'torch', 'timm', 'open_clip', 'diffusers', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_steps_of_a_fine_tune_count_where_there_is_one() -> None:
    with pytest.raises(ValidationError, match=r"fine_tune_steps: only adapt: fine_tune reads it.*linear_probe"):
        timm.Config(model="test_resnet", weights="none", fine_tune_steps=2)
    probed, tuned = (timm.Config(model="test_resnet", weights="none", adapt=w) for w in ("linear_probe", "fine_tune"))
    assert "fine_tune_steps" not in timm.identity(probed)
    assert timm.identity(tuned) != timm.identity(tuned.model_copy(update={"fine_tune_steps": 2}))
