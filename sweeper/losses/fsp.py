"""Flow of the solution procedure: Gram matrices between one map and the next (Yim et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sweeper.errors import InputError
from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Yim et al. 2017, CVPR 2017"
PUBLISHED_WEIGHT = 50.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["fsp"] = "fsp"


def flow(bottom_BCHW: Tensor, top_BDHW: Tensor) -> Tensor:
    """G_cd = mean over pixels of bottom_c top_d, B x C x D, of two maps of one network at the smaller of their sizes.

    Yim et al. 2017, "A gift from knowledge distillation: fast optimization, network minimization and transfer
    learning", CVPR 2017, eq. 1.
    """
    from sweeper.losses._maps import same_size

    bottom_BCHW, top_BDHW = same_size(bottom_BCHW, top_BDHW)
    bottom_BCX, top_BDX = bottom_BCHW.flatten(2), top_BDHW.flatten(2)
    return bottom_BCX @ top_BDX.mT / bottom_BCX.shape[2]


def flow_distance(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """sum over consecutive maps of mean (GS - GT)^2 over batch and entries; maps paired and of equal channels; >= 0.

    Yim et al. 2017, eq. 2, with a mean over the entries in place of their sum, as in RepDistiller.
    """
    import torch

    terms = []
    for i in range(len(student_maps) - 1):
        difference_BCD = flow(student_maps[i], student_maps[i + 1]) - flow(teacher_maps[i], teacher_maps[i + 1])
        terms.append(difference_BCD.square().mean())
    return torch.stack(terms).sum()


def check(_: Config, context: LossContext) -> None:
    """A flow is from one map to the next.

    Raises:
        InputError: there is one pair of maps only.
    """
    if len(context.student_maps) < 2:
        raise InputError(
            "fsp compares how one map leads to the next and needs at least 2 pairs of maps, got "
            f"{len(context.student_maps)}; use a student and a teacher with more stages or another loss"
        )


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = sum_i mean (G(cS_i, cS_i+1) - G(mT_i, mT_i+1))^2, with cS = conv(mS) where the channels differ.

    The paper pairs networks of equal channels and has no connector; a trained 1 x 1 convolution without bias takes the
    student's channels to the teacher's where they differ (ours), so that its Gram matrix is the student's own between
    two trained matrices. Sizes may differ: within a network the larger map is pooled to the smaller, and a Gram matrix
    has no pixels. The paper trains on this loss first and on the task afterwards; here both go together (ours).
    """
    from torch import nn

    from sweeper.losses._maps import pairs
    from sweeper.losses._module import Float32Loss

    check(config, context)

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_maps, teacher_maps = zip(*pairs(inputs), strict=True)
        connected = [loss.get_submodule(f"connectors.{i}")(m) for i, m in enumerate(student_maps)]
        return flow_distance(connected, teacher_maps)

    channels = [(s.channels, t.channels) for s, t in zip(context.student_maps, context.teacher_maps, strict=True)]
    layers = [nn.Identity() if s == t else nn.Conv2d(s, t, kernel_size=1, bias=False) for s, t in channels]
    return Float32Loss(formula, {"connectors": nn.ModuleList(layers)})
