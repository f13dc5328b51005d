"""Overhaul of feature distillation: a margin ReLU on the teacher's maps and a partial L2 distance (Heo et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Heo et al. 2019, arXiv 1904.01866"
PUBLISHED_WEIGHT = 0.001
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["ofd"] = "ofd"


def margins(teacher_BCHW: Tensor) -> Tensor:
    """m_c = mean of what is below 0 in channel c, over batch and pixels, 1 x C x 1 x 1; 0 where nothing is; <= 0."""
    below_BCHW = teacher_BCHW.clamp(max=0)
    count_1C11 = (below_BCHW < 0).sum(dim=(0, 2, 3), keepdim=True)
    return below_BCHW.sum(dim=(0, 2, 3), keepdim=True) / count_1C11.clamp(min=1)


def partial_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, margins_1C11: Tensor) -> Tensor:
    """sum over channels and pixels of (mS - t)^2, t = max(mT, margin), mean over the batch; >= 0.

    Maps of one shape. Where the target is at most 0 and the student at most the target, both are off, and nothing is
    asked. Heo et al. 2019, "A comprehensive overhaul of feature distillation", arXiv 1904.01866, its margin ReLU and
    partial L2 distance.
    """
    import torch

    target_BCHW = torch.maximum(teacher_BCHW, margins_1C11)
    both_off_BCHW = (target_BCHW <= 0) & (student_BCHW <= target_BCHW)
    apart_BCHW = torch.where(both_off_BCHW, 0.0, student_BCHW - target_BCHW)
    return apart_BCHW.square().sum(dim=(1, 2, 3)).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = sum_i 2^(i - n) partial_distance(BN(conv(mS_i)), mT_i) over the pairs i = 1..n: half for each level up.

    Those weights, the 1 x 1 convolutions with BatchNorm and the factor 1 / 1000 (CIFAR-100; 1 / 10000 on ImageNet)
    before it all are from the authors' code. They read the maps before the ReLU and take the margin, the expected
    response below 0, from the BatchNorm before it. Here the maps are what the stages give, after their activation, and
    the margin is the mean of what is below 0 in the batch (ours): 0 behind a ReLU, where the loss asks the student's
    pre-activation to be right where the teacher is on and below 0 elsewhere. The larger map is pooled to the smaller,
    the student's before its connector (ours).
    """
    import torch

    from sweeper.losses._maps import connectors, pairs, same_size
    from sweeper.losses._module import Float32Loss

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        found = pairs(inputs)
        terms = []
        for i, pair in enumerate(found):
            student_BCHW, teacher_BCHW = same_size(*pair)
            connected_BCHW = loss.get_submodule(f"connectors.{i}")(student_BCHW)
            level_weight = 2.0 ** (i + 1 - len(found))
            terms.append(level_weight * partial_distance(connected_BCHW, teacher_BCHW, margins(pair[1])))
        return torch.stack(terms).sum()

    return Float32Loss(formula, {"connectors": connectors(context, norm=True)})
