"""Alignment on the sphere alone: the student's projected direction against the teacher's (Wang & Isola 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings
from sweeper.losses.align_uniform import alignment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "alignment of Wang & Isola 2020, arXiv 2005.10242"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`alpha` as in Wang & Isola 2020.

    simclr and simclrv2 end in a BatchNorm, which centres the student's projections over the batch: against a teacher
    whose embedding is not centred (one that ends in a ReLU), their loss has a floor above 0.
    """

    kind: Literal["align"] = "align"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    alpha: Annotated[float, Field(gt=0, le=100)] = 2.0


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = mean_i || zS_i - zT_i ||_2^alpha with zS = L2norm(projector(eS)) and zT = L2norm(eT); in [0, 2^alpha].

    The first term of Farhat & Chen 2024 (arXiv 2404.03263, the kind align_uniform) without its second. There the
    teacher's embedding is projected too; without uniformity a trained projector of the teacher would meet the student's
    in one point, so here it is only normalised, and the student's is projected to its width (ours).
    """
    from sweeper.losses._module import Float32Loss, given, projector, unit

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        teacher_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        return alignment(unit(student_BT, dim=1), unit(teacher_BT, dim=1), config.alpha)

    projected = projector(config.projector, context.student_dim, context.teacher_dim)
    return Float32Loss(formula, {"student_projector": projected})
