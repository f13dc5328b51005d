"""What the losses on intermediate maps share: pairs of one size, connectors to the teacher's channels.

A student's map and its teacher's differ in channels and pixels: any two timm architectures may be paired, and a
transformer's tokens come as a map too. Adaptive average pooling takes the larger to the size of the smaller, along each
axis; a trained 1 x 1 convolution takes the student's channels to the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sweeper.errors import InputError
from sweeper.losses import LossContext, LossInputs
from sweeper.losses._module import unit


def pairs(inputs: LossInputs) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's maps of a batch, B x C x H x W each, from shallow to deep."""
    if not inputs.student_maps or len(inputs.student_maps) != len(inputs.teacher_maps):
        given = f"{len(inputs.student_maps)} of the student and {len(inputs.teacher_maps)} of the teacher"
        raise ValueError(f"this loss needs paired intermediate maps, and the batch holds {given}")
    return list(zip(inputs.student_maps, inputs.teacher_maps, strict=True))


def resized(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The map at another height and width: each new pixel is the mean of those that it overlaps."""
    return map_BCHW if map_BCHW.shape[2:] == size else F.adaptive_avg_pool2d(map_BCHW, size)


def same_size(student_BCHW: Tensor, teacher_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width of the two."""
    size = (min(student_BCHW.shape[2], teacher_BCHW.shape[2]), min(student_BCHW.shape[3], teacher_BCHW.shape[3]))
    return resized(student_BCHW, size), resized(teacher_BCHW, size)


def connector(channels_in: int, channels_out: int, *, norm: bool) -> nn.Sequential:
    """A trained 1 x 1 convolution: with a bias, or with BatchNorm after it and He's initial weights (AB and OFD)."""
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=not norm)
    if not norm:
        return nn.Sequential(conv)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def connectors(context: LossContext, *, norm: bool) -> nn.ModuleList:
    """One for each pair, from the student's channels to the teacher's."""
    shapes = zip(context.student_maps, context.teacher_maps, strict=True)
    return nn.ModuleList(connector(student.channels, teacher.channels, norm=norm) for student, teacher in shapes)


def attention(map_BCHW: Tensor, p: float) -> Tensor:
    """Where a map is active: mean_c |A_c|^p over the channels, flattened and L2-normalised, B x HW.

    Zagoruyko & Komodakis 2017, arXiv 1612.03928, section 3.1.
    """
    return unit(map_BCHW.abs().pow(p).mean(dim=1).flatten(1), dim=1)


def spatial_pairs(context: LossContext, kind: str) -> list[int]:
    """Numbers of the pairs that have more than one pixel in common; a single normalised pixel is always 1.

    Raises:
        InputError: there is none.
    """
    shapes = list(zip(context.student_maps, context.teacher_maps, strict=True))
    found = [i for i, (s, t) in enumerate(shapes) if min(s.height, t.height) * min(s.width, t.width) > 1]
    if not found:
        sizes = ", ".join(f"{s.height} x {s.width} and {t.height} x {t.width}" for s, t in shapes)
        raise InputError(
            f"{kind} compares where maps are active, so that a pair must have more than one pixel "
            f"in common, and those of this student and teacher have {sizes}; use larger images or another loss"
        )
    return found


def over_spatial_pairs(
    context: LossContext, kind: str, distance: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[nn.Module, LossInputs], Tensor]:
    """The formula of a loss without trained parts: the sum of a distance over the pairs with pixels to choose from.

    Args:
        distance: of a student's and a teacher's map of one size.

    Raises:
        InputError: as `spatial_pairs`.
    """
    numbers = spatial_pairs(context, kind)

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        found = pairs(inputs)
        return torch.stack([distance(*same_size(*found[i])) for i in numbers]).sum()

    return formula
