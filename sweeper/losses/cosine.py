"""Cosine distance from a trained linear projection of the student's embedding to the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "pooled form of Romero et al. 2015, arXiv 1412.6550"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["cosine"] = "cosine"


def cosine(student_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """mean_i 1 - cos(eS_i, eT_i), in [0, 2]; half of alignment with alpha = 2 on the same unit vectors.

    The pooled form of a FitNet hint (Romero et al. 2015, arXiv 1412.6550) that ignores the length of the embedding.
    """
    from torch.nn import functional as F

    return (1 - F.cosine_similarity(student_BT, teacher_BT, dim=1)).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; only the student's side is projected, to the teacher's width."""
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        return cosine(student_BT, given(inputs.teacher_embedding_BT, "teacher's embedding"))

    return Float32Loss(formula, {"student_projector": projector("linear", context.student_dim, context.teacher_dim)})
