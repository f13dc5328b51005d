"""Crops resized as a model's own evaluation resizes its images: Pillow's filters, batched, on the device.

Resizing is linear and separable: a crop of any place and size is `R @ image @ C^T`, with a row of weights in R (rows)
and C (columns) for each pixel of the output. The weights are the filter's at the distance of the pixels' centres, as
wide as the output's pixel where that is larger (antialiased), and sum to 1, which is how the edge of an image is met.
Equal to `torch.nn.functional.interpolate(antialias=True)` on whole images, and to Pillow but for its rounding to bytes.

Shape letters: B batch, C channels, H W pixels of the image, S pixels of the output's side.
"""

from __future__ import annotations

from typing import Literal

import torch

Interpolation = Literal["bilinear", "bicubic"]
_CUBIC = -0.5  # Keys' a, as in Pillow and in torch where it antialiases


def crops(images_BCHW: torch.Tensor, boxes_B4: torch.Tensor, size: int, interpolation: Interpolation) -> torch.Tensor:
    """One crop of each image, resized.

    Args:
        images_BCHW: floats.
        boxes_B4: top, left, height, width as shares of the image. Pixels around a crop count where its edge's weights
            reach them, as with Pillow's `box`.

    Returns:
        [B, C, size, size]; bicubic weights may overshoot the range of the input.
    """
    top, left, height, width = boxes_B4.unbind(dim=1)
    rows_BSH = _weights(top, height, images_BCHW.shape[-2], size, interpolation)
    columns_BSW = _weights(left, width, images_BCHW.shape[-1], size, interpolation)
    return rows_BSH[:, None] @ (images_BCHW @ columns_BSW.transpose(1, 2)[:, None])


def named(interpolation: str) -> Interpolation:
    """That of a model's config; every sharper filter than bilinear (lanczos, random ones) is taken as bicubic."""
    return "bilinear" if interpolation == "bilinear" else "bicubic"


def _weights(
    start_B: torch.Tensor, length_B: torch.Tensor, full: int, size: int, interpolation: Interpolation
) -> torch.Tensor:
    """[B, size, full]: of each of `full` pixels in each of `size` along one axis."""
    step_B = length_B * (full / size)
    places = torch.arange(max(full, size), device=start_B.device, dtype=torch.float32) + 0.5
    centres_BS = start_B[:, None] * full + places[:size] * step_B[:, None]
    distance = (places[:full] - centres_BS[:, :, None]).abs_() / step_B.clamp(min=1)[:, None, None]
    weights = (1 - distance).clamp_(min=0) if interpolation == "bilinear" else _cubic(distance)
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys 1981, equations 14 and 15."""
    a = _CUBIC
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
