"""Similarities of the batch's images, preserved row by row (SP, Tung & Mori 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Tung & Mori 2019, arXiv 1907.09682"
PUBLISHED_WEIGHT = 3000.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["sp"] = "sp"


def similarity_preserving(student_BD: Tensor, teacher_BT: Tensor) -> Tensor:
    """|| rownorm(GT) - rownorm(GS) ||_F^2 / B^2 with G = E E^T, B x B; in [0, 4 / B].

    rownorm divides each row by its L2 norm. The widths may differ, and neither a rotation nor a factor of one side's
    embeddings changes the loss. Tung & Mori 2019, "Similarity-preserving knowledge distillation", arXiv 1907.09682.
    """
    from sweeper.losses._module import unit

    student_BB, teacher_BB = (unit(e @ e.T, dim=1) for e in (student_BD, teacher_BT))
    return (teacher_BB - student_BB).square().mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; it has no state.

    The paper takes activation maps, flattened; the embedding is pooled (ours). The pairs are those of this batch, and
    of this worker's share of it where several train one student.
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        return similarity_preserving(
            inputs.student_embedding_BD, given(inputs.teacher_embedding_BT, "teacher's embedding")
        )

    return Float32Loss(formula)
