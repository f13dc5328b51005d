"""Contrast between student and teacher: each image against the rest of its batch (InfoNCE in SimCLR's form)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "van den Oord et al. 2018, arXiv 1807.03748"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`tau` is usually .05 to .2; `symmetric` also asks each teacher's vector for its student's."""

    kind: Literal["info_nce"] = "info_nce"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    tau: Annotated[float, Field(gt=0)] = 0.1
    symmetric: bool = False


def info_nce(student_BP: Tensor, teacher_BP: Tensor, tau: float, symmetric: bool = False) -> Tensor:
    """mean_i -log( exp(cos(zS_i, zT_i) / tau) / sum_j exp(cos(zS_i, zT_j) / tau) ) for unit vectors; >= 0.

    With `symmetric`, the mean of that and of its transpose. van den Oord et al. 2018, arXiv 1807.03748, eq. 4, with the
    scaled cosine of Chen et al. 2020 (SimCLR, arXiv 2002.05709, eq. 1) and the teacher's view as the only positive.
    Every other row of the batch counts as a negative, also an image of the same class.
    """
    import torch
    from torch.nn import functional as F

    similarity_BB = student_BP @ teacher_BP.T / tau
    own_B = torch.arange(len(similarity_BB), device=similarity_BB.device)
    forward = F.cross_entropy(similarity_BB, own_B)
    return (forward + F.cross_entropy(similarity_BB.T, own_B)) / 2 if symmetric else forward


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial, with a trained projector on each side."""
    from sweeper.losses._module import Float32Loss, projected, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        return info_nce(*projected(loss, inputs), config.tau, config.symmetric)

    parts = {
        "student_projector": projector(config.projector, context.student_dim, config.dim),
        "teacher_projector": projector(config.projector, context.teacher_dim, config.dim),
    }
    return Float32Loss(formula, parts)
