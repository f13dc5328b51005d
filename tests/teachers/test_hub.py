"""Models of the hub, fetched by timm and open_clip themselves from a mirror of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_mirror import hub_of
from safetensors.torch import load_file
from tiny_models import saved_timm

from sweeper.errors import InputError, RunFailed
from sweeper.teachers import timm

TEN = tuple("0123456789")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    with hub_of(tmp_path, monkeypatch) as asked:
        yield tmp_path, asked


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("hf-hub:someone/their-model", "someone/their-model"),
        ("hf_hub:someone/their-model@main", "someone/their-model"),
        ("test_vit.r160_in1k", "timm/test_vit.r160_in1k"),
        ("test_vit", "timm/test_vit.r160_in1k"),
    ],
)
def test_a_model_of_the_hub_has_its_own_weights_and_preprocessing(
    hub: tuple[Path, list[str]], model: str, repository: str
) -> None:
    root, asked = hub
    its_own = "hub:" in model
    folder = root / repository
    wanted = saved_timm(folder, "test_vit", 7 if its_own else 1000, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    teacher = timm.build(timm.Config(model=model, weights="hub"), TEN)
    assert f"{repository}/model.safetensors" in asked
    assert teacher.classes is None, "its classes are not the dataset's"
    if its_own:  # names of timm have their preprocessing in timm's own table
        assert teacher.mean == (0.1, 0.2, 0.3)
        assert teacher.std == (0.4, 0.5, 0.6)
    images = torch.rand(2, 3, teacher.input_size, teacher.input_size)
    mean, std = (torch.tensor(value)[:, None, None] for value in (teacher.mean, teacher.std))
    with torch.no_grad():
        features = wanted.forward_features((images - mean) / std)
        expected = wanted.forward_head(features, pre_logits=True)
        torch.testing.assert_close(teacher(images).embedding_BD, expected)


def test_the_sketch_of_a_hub_id_reads_its_config_and_no_weights(hub: tuple[Path, list[str]]) -> None:
    root, asked = hub
    saved_timm(root / "someone" / "their-model", "test_vit", 7)
    config = timm.Config(model="hf-hub:someone/their-model")
    with torch.device("meta"):
        teacher = timm.sketch(config, TEN)
    assert asked == ["someone/their-model/config.json"]
    assert teacher.embedding_dim == 64
    assert timm.flops_an_image(config, TEN)


def test_a_hub_id_that_is_not_there_says_what_to_do(hub: tuple[Path, list[str]]) -> None:
    for make in (timm.build, timm.sketch):
        with pytest.raises(RunFailed, match=r"'hf-hub:someone/nothing' could not be fetched from the hub: .*folder"):
            make(timm.Config(model="hf-hub:someone/nothing"), TEN)


def test_an_unknown_tag_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"'test_vit.nobody'.*test_vit\.r160_in1k"):
        timm.build(timm.Config(model="test_vit.nobody"), TEN)


def test_weights_of_the_hub_that_are_damaged_are_refused(hub: tuple[Path, list[str]]) -> None:
    root, _ = hub
    folder = root / "someone" / "their-model"
    saved_timm(folder, "test_vit", 7)
    assert load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="the weights can not be read"):
        timm.build(timm.Config(model="hf-hub:someone/their-model"), TEN)
