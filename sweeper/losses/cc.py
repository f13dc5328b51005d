"""Errors of neighbours in the batch, multiplied: correlation congruence as RepDistiller has it (Peng et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Peng et al. 2019, arXiv 1904.01802"
PUBLISHED_WEIGHT = 0.02
NEEDS = frozenset({"embedding"})
IN_ANY_ORDER = False


class Config(LossSettings):
    """`dim` is the width of both projections."""

    kind: Literal["cc"] = "cc"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128


def neighbour_congruence(student_BP: Tensor, teacher_BP: Tensor) -> Tensor:
    """mean_i sum_p d_ip d_(i+1)p over the B - 1 neighbours in the batch, with d = |zS - zT|; >= 0.

    The form of RepDistiller, after the authors' code, from where the weight of .02 is; it is 0 already where one of
    each two neighbours agrees. Peng et al. 2019, "Correlation congruence for knowledge distillation", arXiv 1904.01802,
    compare matrices of kernel values instead.

    Raises:
        ValueError: a batch of one has no neighbours.
    """
    num_rows = len(student_BP)
    if num_rows < 2:
        raise ValueError(f"correlation congruence is over neighbours: it needs a batch of at least 2, got {num_rows}")
    apart_BP = (student_BP - teacher_BP).abs()
    return (apart_BP[:-1] * apart_BP[1:]).sum(dim=1).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial, with a trained linear projection on each side, as in RepDistiller.

    Nothing keeps the two projections from shrinking to one point, where the loss is 0: the published form has no term
    against it.
    """
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        return neighbour_congruence(student_BP, loss.get_submodule("teacher_projector")(embedding_BT))

    parts = {
        "student_projector": projector("linear", context.student_dim, config.dim),
        "teacher_projector": projector("linear", context.teacher_dim, config.dim),
    }
    return Float32Loss(formula, parts)
