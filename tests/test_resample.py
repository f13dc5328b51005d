"""Crops against torch's antialiased resizing and Pillow's, and what they leave alone."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sweeper import resample, views
from sweeper.resample import Interpolation

FILTERS = get_args(Interpolation)
BOXES_B4 = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.3, 0.5, 0.7], [0.25, 0.0, 0.75, 0.4], [0.5, 0.5, 0.125, 0.5]])


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.rand(len(BOXES_B4), 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [7, 16, 40, 64, 101])
def test_whole_images_are_resized_as_torch_does(size: int, interpolation: Interpolation) -> None:
    images_BCHW = pixels(40, 40)
    expected = F.interpolate(images_BCHW, size=size, mode=interpolation, antialias=True)
    found = resample.crops(images_BCHW, BOXES_B4[:1].expand(4, -1), size, interpolation)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [9, 48])
def test_crops_are_cut_and_resized_as_pillow_does(size: int, interpolation: Interpolation) -> None:
    images_BCHW = pixels(40, 56)
    found = resample.crops(images_BCHW, BOXES_B4, size, interpolation)
    for image, box, crop in zip(images_BCHW, BOXES_B4.tolist(), found, strict=True):
        top, left, height, width = box
        edges = (left * 56, top * 40, (left + width) * 56, (top + height) * 40)
        for channel, ours in zip(image, crop, strict=True):  # Pillow resizes floats of one channel
            filtered = Image.fromarray(channel.numpy()).resize(
                (size, size), getattr(Image.Resampling, interpolation.upper()), box=edges
            )
            np.testing.assert_allclose(ours.numpy(), np.asarray(filtered), atol=1e-4)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_whole_image_at_its_own_size_comes_back_bit_by_bit(interpolation: Interpolation) -> None:
    images_BCHW = pixels(24, 24)
    whole_BP = torch.tensor([views.CANONICAL]).expand(4, -1)
    assert torch.equal(views.apply_views(images_BCHW, whole_BP, 24, interpolation), images_BCHW)


def test_the_students_filter_is_that_of_a_bilinear_teacher_where_nothing_shrinks() -> None:
    """So that a student whose teacher is bilinear sees the teacher's very pixels."""
    images_BCHW, flips_B1 = pixels(32, 32), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    views_BP = torch.cat([BOXES_B4, flips_B1], dim=1)
    seen = views.apply_views(images_BCHW, views_BP, 32)
    torch.testing.assert_close(views.apply_views(images_BCHW, views_BP, 32, "bilinear"), seen, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "taken"),
    [("bilinear", "bilinear"), ("bicubic", "bicubic"), ("lanczos", "bicubic"), ("random", "bicubic")],
)
def test_a_models_filter_is_known_by_its_name(given: str, taken: str) -> None:
    assert resample.named(given) == taken
