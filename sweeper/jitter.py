"""Colour jitter as four stored factors a view: brightness, contrast, saturation and hue.

The factors follow the law of torchvision's `ColorJitter`; the operations are those of its
`transforms.v2.functional.adjust_*` with a factor for each sample, so that a batch is one call on its device. They
always come in the order of the factors, where torchvision draws an order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sweeper.registry import Settings

if TYPE_CHECKING:
    import torch

NEUTRAL = (1.0, 1.0, 1.0, 0.0)
_Strength = Annotated[float, Field(ge=0)]


class JitterConfig(Settings):
    """Strengths, 0 for none: factors of brightness, contrast and saturation are drawn from [max(0, 1 - s), 1 + s], the
    turn of the hue from [-s, s], where 1 is the whole circle.
    """

    brightness: _Strength = 0.0
    contrast: _Strength = 0.0
    saturation: _Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


NO_JITTER = JitterConfig()


def factors(config: JitterConfig, uniforms_N4: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Factors [N, 4] in the order of `NEUTRAL`, from uniforms in [0, 1)."""
    strength_4 = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    low_4 = np.array(NEUTRAL) - strength_4
    low_4[:3] = low_4[:3].clip(min=0)
    found: npt.NDArray[np.float64] = low_4 + uniforms_N4 * (np.array(NEUTRAL) + strength_4 - low_4)
    return found


def adjust(pixels_BCHW: torch.Tensor, factors_B4: torch.Tensor) -> torch.Tensor:
    """Apply to each image its own factors; neutral ones leave it as it is, bit by bit.

    Args:
        pixels_BCHW: floats in [0, 1], three channels.
    """
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    brightness, contrast, saturation, hue = factors_B4[:, :, None, None, None].unbind(dim=1)
    bright = (pixels_BCHW * brightness).clamp(0, 1)
    mean = rgb_to_grayscale(bright).mean(dim=(1, 2, 3), keepdim=True)
    contrasted = (contrast * bright + (1 - contrast) * mean).clamp(0, 1)
    saturated = (saturation * contrasted + (1 - saturation) * rgb_to_grayscale(contrasted)).clamp(0, 1)
    adjusted: torch.Tensor = saturated.where(hue == 0, _turned(saturated, hue[:, 0]))
    return adjusted


def _turned(pixels_BCHW: torch.Tensor, hue_B11: torch.Tensor) -> torch.Tensor:
    """The hue of HSV turned by a share of the circle, value and chroma kept."""
    import torch

    red, green, blue = pixels_BCHW.unbind(dim=1)
    least, value = pixels_BCHW.aminmax(dim=1)
    chroma = value - least
    divisor = chroma.where(chroma > 0, 1)  # a grey pixel stays grey whatever its hue is said to be
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = (green - blue).div(divisor).where(value == red, sixths) + 6 * hue_B11
    channels = []
    for offset in (5, 3, 1):  # red, green, blue: how far each lies from the value, as a trapezium over the circle
        place = (offset + sixths) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)
