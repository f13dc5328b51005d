"""The filters: what they score, with real models, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoProcessor

from sweeper import registry
from sweeper.errors import InputError, RunFailed
from sweeper.filters import FilterSettings, agreement, clip_score
from sweeper.teachers import timm

NAMES = ("cat", "fire_truck", "tench")
CPU = torch.device("cpu")
IMAGES_BHWC = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.clip(tmp_path_factory.mktemp("clips") / "clip")


def teacher() -> Any:
    return timm.build(timm.Config(model="test_resnet", weights="none", input_size=32), NAMES)


@pytest.mark.parametrize("kind", registry.kinds("filters"))
def test_every_kind_says_how_often_it_tries(kind: str) -> None:
    config = registry.config_class("filters", kind)
    assert issubclass(config, FilterSettings)
    assert config.model_fields["max_attempts"].default == 4


def test_agreement_is_the_teachers_probability_of_the_class() -> None:
    config = agreement.Config(teacher="cnn", min_probability=0.3)
    judge = agreement.build(config, CPU, NAMES, teacher())
    scores = judge.scores(IMAGES_BHWC, LABELS)
    pixels = torch.from_numpy(IMAGES_BHWC).permute(0, 3, 1, 2).float() / 255
    seen = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = teacher()(seen).logits_BK.softmax(dim=1)[range(6), LABELS]
    np.testing.assert_allclose(scores, expected, atol=0.02)  # the view's own interpolation
    assert judge.least == 0.3
    every = np.stack([judge.scores(IMAGES_BHWC, [label] * 6) for label in range(3)])
    np.testing.assert_allclose(every.sum(axis=0), 1)


def test_left_out_the_least_probability_is_that_of_chance() -> None:
    assert agreement.build(agreement.Config(teacher="cnn"), CPU, NAMES, teacher()).least == pytest.approx(1 / 3)


def test_the_identity_of_an_agreement_does_not_hold_the_teachers_name() -> None:
    """The plan adds the key of the adapted teacher, which does not change with the name."""
    one, other = agreement.Config(teacher="cnn"), agreement.Config(teacher="resnet")
    assert agreement.identity(one) == agreement.identity(other)
    for changed in ({"min_probability": 0.5}, {"max_attempts": 5}):
        assert agreement.identity(one.model_copy(update=changed)) != agreement.identity(one)


def test_clip_score_is_the_cosine_of_image_and_text(clip_folder: Path) -> None:
    """As CLIPModel itself gives it: its logits without their scale."""
    config = clip_score.Config(model=str(clip_folder), min_score=0.1, prompt="a {label}")
    judge = clip_score.build(config, CPU, NAMES)
    model, processor = AutoModel.from_pretrained(clip_folder), AutoProcessor.from_pretrained(clip_folder)
    given = processor(
        text=["a cat", "a fire truck", "a tench"], images=list(IMAGES_BHWC), return_tensors="pt", padding=True
    )
    with torch.no_grad():
        cosines = model(**given).logits_per_image / model.logit_scale.exp()
    np.testing.assert_allclose(judge.scores(IMAGES_BHWC, LABELS), cosines[range(6), LABELS], atol=1e-5)
    assert judge.least == 0.1
    assert len(np.unique(judge.scores(IMAGES_BHWC[:1].repeat(3, axis=0), [0, 1, 2]))) == 3


def test_a_clip_is_named_by_its_contents(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").symlink_to(clip_folder)
    here, moved = (clip_score.Config(model=str(p), min_score=0.2) for p in (clip_folder, tmp_path / "moved"))
    assert clip_score.identity(here) == clip_score.identity(moved)
    assert clip_score.identity(clip_score.Config(min_score=0.2))["model"] == "openai/clip-vit-base-patch32"
    assert clip_score.identity(here) != clip_score.identity(here.model_copy(update={"min_score": 0.3}))


def test_a_model_that_is_no_clip_is_refused(clip_folder: Path, sd_folder: Path, tmp_path: Path) -> None:
    def refused(folder: Path, reason: str) -> None:
        with pytest.raises(InputError, match=reason):
            clip_score.build(clip_score.Config(model=str(folder), min_score=0.2), CPU, NAMES)

    refused(tmp_path / "nothing", "does not exist")
    refused(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    refused(tmp_path, "can not be loaded by transformers")
    pickled = tmp_path / "pickled"
    AutoModel.from_pretrained(clip_folder).save_pretrained(pickled)
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(pickled, "can not be loaded by transformers|weights are a pickle")
    with pytest.raises(ValidationError, match="does not say where the class goes"):
        clip_score.Config(min_score=0.2, prompt="a cat")


def test_a_hub_that_does_not_answer_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match="nobody/nothing could not be fetched from the hub"):
        clip_score.build(clip_score.Config(model="nobody/nothing", min_score=0.2), CPU, NAMES)


def test_reading_a_file_with_filters_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sweeper.generators import diffusers as d; "
        "d.Config(model='a/b', prompt='{label}', filter={'kind': 'agreement', 'teacher': 'cnn'}); "
        "d.Config(model='a/b', prompt='{label}', filter={'kind': 'clip_score', 'min_score': 0.2}); "
        "print([m for m in ('torch', 'transformers', 'diffusers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
