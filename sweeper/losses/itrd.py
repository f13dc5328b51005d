"""Correlation and mutual information with the teacher by cheap entropy estimates (ITRD, Miles et al. 2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Miles et al. 2021, arXiv 2112.00459"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """The paper's order alpha and the weights of both terms, which stand inside the loss, `weight` before it."""

    kind: Literal["itrd"] = "itrd"
    alpha: Annotated[float, Field(gt=0, le=100)] = 1.5
    w_correlation: Annotated[float, Field(ge=0)] = 2.0
    w_mutual: Annotated[float, Field(ge=0)] = 0.05


def correlation(student_BT: Tensor, teacher_BT: Tensor, alpha: float) -> Tensor:
    """log2 sum_i |c_ii - 1|^(2 alpha), with c_ii = (B - 1) / B times the correlation of column i over the batch.

    In [2 alpha log2(1 / B), 2 alpha] + log2 T. Miles et al. 2021, arXiv 2112.00459. The factor, below 1, is that of the
    authors' code (a sum over B of what was standardised over B - 1); it keeps the logarithm finite and its slope below
    2 alpha B where the columns agree. Columns are standardised as by BatchNorm: 1e-5 is added to the variance, and one
    that does not vary counts as uncorrelated (ours).

    Raises:
        ValueError: from a batch of one, which has no correlation.
    """
    import torch
    from torch.nn import functional as F

    num_rows = len(student_BT)
    student_BT, teacher_BT = (F.batch_norm(z_BT, None, None, training=True) for z_BT in (student_BT, teacher_BT))
    pearson_T = (student_BT * teacher_BT).mean(dim=0)
    # rounding may take a correlation above 1; the distance itself is never below 1 / B
    distance_T = (1 - pearson_T * (num_rows - 1) / num_rows).clamp(min=0.5 / num_rows)
    return torch.logsumexp(2 * alpha * distance_T.log(), dim=0) / math.log(2)


def mutual(student_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """||A_S||_F^2 - ||A_ST||_F^2 = mean_ij cos(S_i, S_j)^2 (1 - cos(T_i, T_j)^2), in [0, 1].

    A_S is the student's Gram matrix of unit rows divided by its trace B, A_ST its elementwise product with the
    teacher's, divided likewise. -log2 of each squared norm is a matrix-based Renyi entropy of order 2, and S's less
    ST's is the mutual information less the teacher's entropy, a constant. The authors' code, for which the published
    weight holds, takes the norms without the logarithms, and so does this.
    """
    from torch.nn import functional as F

    student_BB, teacher_BB = (unit @ unit.T for unit in (F.normalize(z_BT, dim=1) for z_BT in (student_BT, teacher_BT)))
    return (student_BB.square() * (1 - teacher_BB.square())).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = 2 correlation + .05 mutual, of a trained linear map of the student to the teacher's width.

    The map is there for equal widths too; the authors' code then passes it by in the second term (ours). The first term
    falls below 0 as the correlation grows.
    """
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        teacher_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        return (
            config.w_correlation * correlation(student_BT, teacher_BT, config.alpha),
            config.w_mutual * mutual(student_BT, teacher_BT),
        )

    return Float32Loss(formula, {"student_projector": projector("linear", context.student_dim, context.teacher_dim)})
