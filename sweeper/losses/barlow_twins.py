"""Cross-correlation of student and teacher brought to the identity (Barlow Twins, Zbontar et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Zbontar et al. 2021, arXiv 2103.03230"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`redundancy` is the paper's lambda. The paper gains from width, up to 16384, where contrastive losses do not."""

    kind: Literal["barlow_twins"] = "barlow_twins"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    dim: Annotated[int, Field(ge=1, le=65536)] = 1024
    redundancy: Annotated[float, Field(ge=0)] = 5e-3


def barlow_twins(student_BP: Tensor, teacher_BP: Tensor, redundancy: float) -> Tensor:
    """sum_i (1 - c_ii)^2 + lambda sum_{i != j} c_ij^2; >= 0.

    c is the P x P correlation over the batch between the student's columns and the teacher's, in [-1, 1]. Zbontar et
    al. 2021, arXiv 2103.03230, eq. 1 and 2. Columns are standardised as by BatchNorm without affine parameters (so in
    the authors' code): 1e-5 is added to the variance, and a column that does not vary is uncorrelated with all.

    Raises:
        ValueError: from a batch of one, which has no correlation.
    """
    from torch.nn import functional as F

    student_BP, teacher_BP = (F.batch_norm(z_BP, None, None, training=True) for z_BP in (student_BP, teacher_BP))
    correlation_PP = student_BP.T @ teacher_BP / len(student_BP)
    own_P = correlation_PP.diagonal()
    others_PP = correlation_PP - own_P.diag()
    return (1 - own_P).square().sum() + redundancy * others_PP.square().sum()


def drop_idle_biases(layers: nn.Sequential) -> nn.Sequential:
    """Take away the biases that a standardisation right behind them cancels."""
    from torch import nn

    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Linear) and (following is None or isinstance(following, nn.BatchNorm1d)):
            layer.register_parameter("bias", None)
    return layers


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial, with a trained projector on each side, whose last layer has no bias.

    Student and teacher see the same view and stand for the paper's two augmented views (ours); the teacher's projector
    is trained, since its cached embedding is raw and redundant.
    """
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        teacher_BP = loss.get_submodule("teacher_projector")(embedding_BT)
        return barlow_twins(student_BP, teacher_BP, config.redundancy)

    widths = {"student_projector": context.student_dim, "teacher_projector": context.teacher_dim}
    return Float32Loss(
        formula,
        {name: drop_idle_biases(projector(config.projector, width, config.dim)) for name, width in widths.items()},
    )
