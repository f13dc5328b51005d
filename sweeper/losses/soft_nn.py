"""Chance that a student's soft nearest neighbour among the teacher's vectors has its class (Frosst et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Frosst et al. 2019, arXiv 1902.01889"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "labels"})


class Config(LossSettings):
    """On unit vectors a `temperature` of .2 is a cosine's tau of .1; the paper's depends on its features' scale."""

    kind: Literal["soft_nn"] = "soft_nn"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.2


def soft_nn(student_BP: Tensor, teacher_BP: Tensor, labels_B: Tensor, hard_B: Tensor, temperature: float) -> Tensor:
    """mean_i -log( sum_{j: y_j = y_i} exp(-d_ij / T) / sum_k exp(-d_ik / T) ), d_ij = || zS_i - zT_j ||^2; >= 0.

    All indices run over the rows with a hard label; where these are of one class, or none, the loss is exactly 0.
    Frosst, Papernot and Hinton 2019, "Analyzing and improving representations with the soft nearest neighbor loss",
    arXiv 1902.01889.
    """
    import torch

    from sweeper.losses._labels import hard_pairs

    trusted_BB, same_BB = hard_pairs(labels_B, hard_B)
    # || zS_i ||^2 is common to both sums
    nearness_BB = (2 * student_BP @ teacher_BP.T - teacher_BP.square().sum(dim=1)) / temperature
    among_all_B = nearness_BB.masked_fill(~trusted_BB, -torch.inf).logsumexp(dim=1)
    among_same_B = nearness_BB.masked_fill(~same_BB, -torch.inf).logsumexp(dim=1)
    return (among_all_B - among_same_B).sum() / hard_B.sum().clamp(min=1)


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial on unit vectors, with a trained projector on each side.

    The neighbours are the teacher's vectors, among them the image's own, which the paper leaves out since it compares
    one network's vectors with each other (ours). The temperature stays as given; the paper also learns it.
    """
    from sweeper.losses._module import Float32Loss, projected, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        return soft_nn(*projected(loss, inputs), inputs.labels_B, inputs.hard_B, config.temperature)

    parts = {
        "student_projector": projector(config.projector, context.student_dim, config.dim),
        "teacher_projector": projector(config.projector, context.teacher_dim, config.dim),
    }
    return Float32Loss(formula, parts)
