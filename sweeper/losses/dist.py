"""Correlation of the class probabilities, within an image and within a class (DIST, Huang et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Huang et al. 2022, arXiv 2205.10536"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"logits"})
# Added to the product of the two lengths, as in the authors' code: classes of tiny probability fade out.
EPS = 1e-8


class Config(LossSettings):
    """`beta` weighs the relations between classes (rows), `gamma` those between images (columns)."""

    kind: Literal["dist"] = "dist"
    beta: Annotated[float, Field(ge=0)] = 1.0
    gamma: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


def pearson(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`, kept at size 1; in [-1, 1], and 0 without slope where a side does not vary."""
    from sweeper.losses._variation import deviations

    student_apart, student_squared = deviations(student, dim)
    teacher_apart, teacher_squared = deviations(teacher, dim)
    covariance = (student_apart * teacher_apart).sum(dim=dim, keepdim=True)
    return covariance / (student_squared.sqrt() * teacher_squared.sqrt() + EPS)


def dist(student_logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 mean_i (1 - pearson(pS_i, pT_i)) over rows, and the same over columns; each in [0, 2 T^2].

    p = softmax(logits / T). Huang et al. 2022, "Knowledge distillation from a stronger teacher", arXiv 2205.10536:
    inter-class relation (of the classes in one image) and intra-class relation (of the images in one class). The factor
    T^2 is that of the authors' code.
    """
    student_BK, teacher_BK = ((z_BK / temperature).softmax(dim=1) for z_BK in (student_logits_BK, teacher_logits_BK))
    rows, columns = ((1 - pearson(student_BK, teacher_BK, dim)).mean() * temperature**2 for dim in (1, 0))
    return rows, columns


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = beta rows + gamma columns; it has no state.

    Rows and columns in which one side is constant count as uncorrelated and give no gradient (ours): the authors' code
    divides by 1e-8 there.
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        teacher_logits_BK = given(inputs.teacher_logits_BK, "teacher's logits")
        rows, columns = dist(inputs.student_logits_BK, teacher_logits_BK, config.temperature)
        return config.beta * rows + config.gamma * columns

    return Float32Loss(formula)
