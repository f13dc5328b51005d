"""Views: the crops, flips and colours under which a teacher's outputs are cached and a student is trained.

A view is stored as parameters relative to the image, `(top, left, height, width, flip)` and with colour jitter the four
factors of `jitter`, never as a seed of a library's generator: those streams change with the library's version, and
teacher and student must see the very same pixels. The parameters come from a counter-based generator: a value depends
on (seed, sample key, view number) and on nothing else, so that any view of any sample can be drawn, in any order, on
any machine.

View 0 is canonical (the whole image, no flip, its own colours); the crops follow the law of torchvision's
`RandomResizedCrop` (Szegedy et al. 2015, arXiv 1409.4842, section 6). Consistent views of teacher and student: Beyer et
al. 2022, arXiv 2106.05237.

Shape letters: N samples, V views, P parameters of a view (5, or 9 with colour jitter), B batch, C H W pixels.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from sweeper import jitter
from sweeper.jitter import NO_JITTER, JitterConfig
from sweeper.registry import Settings

if TYPE_CHECKING:
    import torch

    from sweeper.resample import Interpolation

CANONICAL = (0.0, 0.0, 1.0, 1.0, 0.0)
CROP_ATTEMPTS = 10  # as in torchvision: then the largest centred crop of an allowed ratio

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
# Draw numbers within one view; attempt `a` of a crop uses _CROP + 2a and _CROP + 2a + 1.
# The four of `jitter` begin at _JITTER.
_TOP, _LEFT, _FLIP, _JITTER, _CROP = 0, 1, 2, 3, 16

Match = Literal["same", "fixed"]


class ViewConfig(Settings):
    """How many views of each image are cached, and the law they are drawn from.

    `per_image` counts the canonical view; `crop_scale` bounds the crop's share of the image's area, `crop_ratio` its
    width over height; `flip` mirrors every other view at random; `jitter` changes the colours of all but view 0.

    `match`: the target is that of the very view that the student sees (`same`), or always that of view 0 (`fixed`): the
    negative control of Beyer et al., one fixed teacher output per image. Views and cache are the same for both.
    """

    per_image: Annotated[int, Field(ge=1, le=10_000)] = 8
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    # Left out of what is written where they are not used: keys of artifacts and runs stay what they were without them.
    jitter: JitterConfig = Field(default=NO_JITTER, exclude_if=lambda value: value == NO_JITTER)
    match: Match = Field(default="same", exclude_if=lambda value: value == "same")

    @property
    def num_parameters(self) -> int:
        """P: of each view that is drawn by this law."""
        return len(CANONICAL) + (len(jitter.NEUTRAL) if self.jitter != NO_JITTER else 0)

    @field_validator("crop_scale")
    @classmethod
    def _scale_in_unit(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"needs 0 < low <= high <= 1, as shares of the image's area; got {list(value)}")
        return value

    @field_validator("crop_ratio")
    @classmethod
    def _ratio_is_ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] < float("inf"):
            raise ValueError(f"needs 0 < low <= high, as width over height; got {list(value)}")
        return value

    @model_validator(mode="after")
    def _fixed_differs_from_same(self) -> ViewConfig:
        if self.match == "fixed" and self.per_image == 1:
            raise ValueError("match: fixed needs per_image of at least 2, or the one view is that of the target")
        return self


def sample_key(sample_id: str) -> int:
    """The 64-bit key of a sample: blake2b of its id, so that it does not depend on the sample's place in a list."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode("utf-8"), digest_size=8).digest(), "little")


def counter_uniform(seed: int, *counters: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Uniforms in [0, 1) that are a pure function of (seed, counters), with 53 random bits.

    The state starts as the seed's hash; each counter is added by exclusive-or and hashed again with splitmix64 (Steele,
    Lea and Flood 2014, "Fast splittable pseudorandom number generators"). Every step is a bijection of 64 bits, so that
    two keys that differ never share a stream by their low bits.

    Args:
        counters: integers or integer arrays that broadcast; taken modulo 2**64.
    """
    state: npt.NDArray[np.uint64] = _splitmix64(np.asarray(seed % 2**64, dtype=np.uint64))
    for counter in counters:
        state = _splitmix64(state ^ _as_uint64(counter))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_views(
    config: ViewConfig, seed: int, sample_keys: npt.NDArray[np.uint64], views: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Parameters of the named views of the given samples.

    Args:
        sample_keys: shape [N], from `sample_key`.
        views: view numbers, shape [N] (one a sample) or [N, V]; any number >= 0, also beyond `per_image`.

    Returns:
        float32 of shape `views.shape + (P,)`: top, left, height, width as shares of the image, flip as 0 or 1, and with
        colour jitter the factors of `jitter`.

    Raises:
        ValueError: the shapes do not fit, or a view number is negative.
    """
    keys, numbers = np.asarray(sample_keys, dtype=np.uint64), np.asarray(views)
    if numbers.ndim not in (1, 2) or keys.shape != numbers.shape[:1]:
        raise ValueError(f"needs keys [N] and views [N] or [N, V]; got {keys.shape} and {numbers.shape}")
    if numbers.size and int(numbers.min()) < 0:
        raise ValueError(f"view numbers start at 0; got {int(numbers.min())}")
    shape = numbers.shape
    keys = np.broadcast_to(keys.reshape(keys.shape + (1,) * (numbers.ndim - 1)), shape).ravel()
    numbers = numbers.ravel()

    height, width = _crop_sizes(config, seed, keys, numbers)
    out = np.empty((keys.size, config.num_parameters), dtype=np.float32)
    out[:, 0] = counter_uniform(seed, keys, numbers, _TOP) * (1 - height)
    out[:, 1] = counter_uniform(seed, keys, numbers, _LEFT) * (1 - width)
    out[:, 2], out[:, 3] = height, width
    out[:, 4] = counter_uniform(seed, keys, numbers, _FLIP) < 0.5 if config.flip else 0.0
    if config.num_parameters > len(CANONICAL):
        uniforms = [counter_uniform(seed, keys, numbers, _JITTER + place) for place in range(len(jitter.NEUTRAL))]
        out[:, 5:] = jitter.factors(config.jitter, np.stack(uniforms, axis=1))
    out[numbers == 0] = (*CANONICAL, *jitter.NEUTRAL)[: config.num_parameters]
    return out.reshape((*shape, config.num_parameters))


def apply_views(
    images_BCHW: torch.Tensor, views_BP: torch.Tensor, size: int, interpolation: Interpolation | None = None
) -> torch.Tensor:
    """Cut one view out of each image, resize it to `size` x `size` and jitter its colours, on the images' device.

    Where nothing can shrink, each pixel is one bilinear sample (`grid_sample`); else `roi_align` with aligned corners
    averages as many of them as the crop is larger than the output, so that shrinking is antialiased. The whole image at
    its own size comes back, to float32's rounding.

    Args:
        images_BCHW: uint8, or floats in [0, 1]; three channels where colours are jittered.
        views_BP: from `draw_views`, on any device.
        interpolation: a teacher's own, by `resample`, which takes several times as long; None for samples.

    Returns:
        float32 [B, C, size, size] in [0, 1], to float32's rounding.
    """
    import torch

    from sweeper import resample

    pixels = images_BCHW.float()
    if images_BCHW.dtype == torch.uint8:
        pixels = pixels.div_(255)
    views = views_BP.to(device=pixels.device, dtype=torch.float32)
    boxes_B4, flip_B = views[:, :4], views[:, 4].bool()
    if interpolation is not None:
        seen = _mirrored(resample.crops(pixels, boxes_B4, size, interpolation).clamp_(0, 1), flip_B)
    elif size < max(pixels.shape[-2:]):
        seen = _mirrored(_averaged(pixels, boxes_B4, size), flip_B)
    else:
        seen = _enlarged(pixels, boxes_B4, flip_B, size)
    return seen if views.shape[1] == len(CANONICAL) else jitter.adjust(seen, views[:, 5:])


def whole(images_BCHW: torch.Tensor, size: int, interpolation: Interpolation | None = None) -> torch.Tensor:
    """The canonical view of uint8 images [B, C, H, W] as float32 [B, C, size, size] in [0, 1]; see `apply_views`."""
    if images_BCHW.shape[-2:] == (size, size):
        return images_BCHW.float().div_(255)
    import torch

    views_B5 = torch.tensor([CANONICAL], dtype=torch.float32).expand(len(images_BCHW), -1)
    return apply_views(images_BCHW, views_B5, size, interpolation)


def _mirrored(crops_BCHW: torch.Tensor, flip_B: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(flip_B[:, None, None, None], crops_BCHW.flip(-1), crops_BCHW)


def _enlarged(pixels_BCHW: torch.Tensor, boxes_B4: torch.Tensor, flip_B: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear samples at the centres of the output's pixels; mirrored by the order in which columns are read."""
    import torch
    from torch.nn.functional import grid_sample

    top, left, height, width = boxes_B4.unbind(dim=1)
    centres_S = (torch.arange(size, device=pixels_BCHW.device, dtype=torch.float32) + 0.5) / size
    rows_BS = top[:, None] + height[:, None] * centres_S
    columns_BS = left[:, None] + width[:, None] * torch.where(flip_B[:, None], centres_S.flip(0), centres_S)
    points_BSS = torch.complex((2 * columns_BS - 1)[:, None, :], (2 * rows_BS - 1)[:, :, None])  # x + iy, in one pass
    grid_BSS2 = torch.view_as_real(points_BSS)
    return grid_sample(pixels_BCHW, grid_BSS2, mode="bilinear", padding_mode="border", align_corners=False)


def _averaged(pixels_BCHW: torch.Tensor, boxes_B4: torch.Tensor, size: int) -> torch.Tensor:
    import torch
    from torchvision.ops import roi_align

    image_height, image_width = pixels_BCHW.shape[-2:]
    top, left, height, width = boxes_B4.unbind(dim=1)
    rows = torch.arange(len(boxes_B4), device=pixels_BCHW.device, dtype=torch.float32)
    edges = (left * image_width, top * image_height, (left + width) * image_width, (top + height) * image_height)
    boxes_B5 = torch.stack([rows, *edges], dim=1)
    crops: torch.Tensor = roi_align(pixels_BCHW, boxes_B5, output_size=size, sampling_ratio=-1, aligned=True)
    return crops


def _crop_sizes(
    config: ViewConfig, seed: int, keys: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Heights and widths: area uniform, log ratio uniform, drawn again while the crop sticks out of the image."""
    (scale_low, scale_high), (ratio_low, ratio_high) = config.crop_scale, config.crop_ratio
    log_low, log_high = np.log(ratio_low), np.log(ratio_high)
    # What is left after all attempts: the largest centred crop whose ratio is the allowed one nearest to the image's.
    nearest = min(max(1.0, ratio_low), ratio_high)
    height = np.full(keys.shape, min(1.0, 1 / nearest))
    width = np.full(keys.shape, min(1.0, nearest))
    pending = np.arange(keys.size)
    for attempt in range(CROP_ATTEMPTS):
        at = keys[pending], numbers[pending]
        area = scale_low + counter_uniform(seed, *at, _CROP + 2 * attempt) * (scale_high - scale_low)
        ratio = np.exp(log_low + counter_uniform(seed, *at, _CROP + 2 * attempt + 1) * (log_high - log_low))
        tall, wide = np.sqrt(area / ratio), np.sqrt(area * ratio)
        fits = (tall <= 1) & (wide <= 1)
        height[pending[fits]], width[pending[fits]] = tall[fits], wide[fits]
        pending = pending[~fits]
        if not pending.size:
            break
    return height, width


def _as_uint64(value: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    if isinstance(value, int):
        return np.asarray(value % 2**64, dtype=np.uint64)
    return np.asarray(value).astype(np.uint64)


def _splitmix64(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of splitmix64 from the given state, elementwise; arithmetic is modulo 2**64 on purpose."""
    with np.errstate(over="ignore"):
        mixed: Any = value + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MULTIPLIER_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MULTIPLIER_2
        result: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result
