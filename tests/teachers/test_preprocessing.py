"""A teacher sees what its own config asks for: its mean, its deviation, its size, its filter, as timm would show it.

sweeper shows the whole square (timm's `crop_pct` is taken as 1), and does not round to bytes after it has resized, as
timm does by way of Pillow: embeddings differ by what is allowed here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from torch.nn import functional as F

from sweeper import adapt, ingest, views
from sweeper.teachers import timm

TEN = tuple("0123456789")
CORNERS = ((0, 0, 400), (120, 20, 300), (50, 50, 256), (200, 100, 320))
LEAST_COSINE = 0.999
MODELS = ("test_resnet", "test_vit", "test_convnext")  # bilinear, and twice bicubic


@cache
def photographs() -> list[Image.Image]:
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [picture.crop((x, y, x + side, y + side)) for picture in pictures for x, y, side in CORNERS]


def stored(size: int) -> torch.Tensor:
    """The photographs as ingest keeps them, uint8 [B, 3, size, size]."""
    squares = [np.frombuffer(ingest.fit_square(picture, size), np.uint8) for picture in photographs()]
    return torch.from_numpy(np.stack(squares).reshape(-1, size, size, 3).transpose(0, 3, 1, 2).copy())


def as_timm_does(images_BCHW: torch.Tensor, model: torch.nn.Module, size: int) -> torch.Tensor:
    """What timm's own evaluation would give the model, normalised, of the whole square."""
    config = {**resolve_model_data_config(model), "crop_pct": 1.0, "input_size": (3, size, size)}
    transform = create_transform(**config, is_training=False)
    return torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images_BCHW])


@torch.no_grad()
def cosines(teacher: timm.TimmTeacher, images_BCHW: torch.Tensor) -> torch.Tensor:
    ours, _ = adapt.embed(teacher, adapt.ImageSplit(images_BCHW, torch.zeros(len(images_BCHW))), torch.device("cpu"))
    normalised_BCHW = as_timm_does(images_BCHW, teacher.model, teacher.input_size)
    theirs = teacher.model.forward_head(teacher.model.forward_features(normalised_BCHW), pre_logits=True)
    return F.cosine_similarity(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_of_the_teachers_size_is_seen_exactly_as_timm_shows_it(name: str) -> None:
    teacher = timm.build(timm.Config(model=name, weights="none"), TEN)
    images = stored(teacher.input_size)
    seen = (views.whole(images, teacher.input_size, teacher.interpolation) - teacher.mean_C11) / teacher.std_C11
    torch.testing.assert_close(seen, as_timm_does(images, teacher.model, teacher.input_size), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2])
@pytest.mark.parametrize("name", MODELS)
def test_an_image_of_another_size_is_seen_as_timm_shows_it(name: str, ratio: float) -> None:
    teacher = timm.build(timm.Config(model=name, weights="none"), TEN)
    assert cosines(teacher, stored(round(ratio * teacher.input_size))).min() > LEAST_COSINE


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_trained_teachers_see_what_timm_shows_them(name: str) -> None:
    teacher = timm.build(timm.Config(weights=f"zoo:{name}"), TEN)
    for size in (16, 32, 64):
        assert cosines(teacher, stored(size)).min() > LEAST_COSINE


def test_the_bound_would_notice_another_filter() -> None:
    teacher = timm.build(timm.Config(weights="zoo:cnn"), TEN)
    teacher.interpolation = "bicubic"
    assert cosines(teacher, stored(64)).min() < LEAST_COSINE


def test_the_bound_would_notice_another_mean_and_deviation() -> None:
    teacher = timm.build(timm.Config(model="test_convnext", weights="none"), TEN)
    teacher.mean_C11[:], teacher.std_C11[:] = 0.0, 1.0
    assert cosines(teacher, stored(teacher.input_size)).min() < LEAST_COSINE
