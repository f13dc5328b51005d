"""A hint on the embedding: regression of the teacher's from the student's (pooled FitNets, Romero et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "pooled form of Romero et al. 2015, arXiv 1412.6550"
PUBLISHED_WEIGHT = 100.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`projector` is the regressor; those that end in a BatchNorm could not follow the scale of the embedding."""

    kind: Literal["hint"] = "hint"
    projector: Literal["linear", "mocov2"] = "linear"


def hint(student_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """mean (proj(eS) - eT)^2 over batch and width; >= 0.

    Romero et al. 2015, "FitNets: hints for thin deep nets", arXiv 1412.6550, eq. 3, with a mean in place of half a sum,
    as in RepDistiller, from where the published weight of 100 is.
    """
    from torch.nn import functional as F

    return F.mse_loss(student_BT, teacher_BT)


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; only the student's side is projected, to the teacher's width.

    The paper's hint is on an intermediate map, and comes before the distillation; this one is on the pooled embedding,
    and both losses are minimised together (ours). The kind fitnet works on maps.
    """
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        return hint(student_BT, given(inputs.teacher_embedding_BT, "teacher's embedding"))

    projected = projector(config.projector, context.student_dim, context.teacher_dim)
    return Float32Loss(formula, {"student_projector": projected})
