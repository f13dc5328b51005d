"""Knowledge distillation on standardised logits: only their relations within an image count (LSKD, Sun et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings
from sweeper.losses.kl import kl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Sun et al. 2024, arXiv 2403.01427"
PUBLISHED_WEIGHT = 9.0
NEEDS = frozenset({"logits"})
# Added to the standard deviation, as in the authors' code.
EPS = 1e-7


class Config(LossSettings):
    """`temperature` is the base temperature, which divides logits of standard deviation 1; the authors take 2 or 3."""

    kind: Literal["lskd"] = "lskd"
    temperature: Annotated[float, Field(gt=0)] = 2.0


def standardized(logits_BK: Tensor) -> Tensor:
    """(z - mean(z)) / std(z) of each row, with K - 1 under the root; a row of equal logits becomes 0, without slope.

    Sun et al. 2024, "Logit standardization in knowledge distillation", arXiv 2403.01427. Neither a shift of a row nor a
    positive factor changes the result; no entry is larger than sqrt(K). K - 1 and `EPS` are those of the authors' code.
    """
    from sweeper.losses._variation import deviations

    apart_BK, squared_B1 = deviations(logits_BK, dim=1)
    return apart_BK / ((squared_B1 / (logits_BK.shape[1] - 1)).sqrt() + EPS)


def lskd(student_logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(standardized(zT) / T) || softmax(standardized(zS) / T) ), mean over the batch; >= 0."""
    return kl(standardized(student_logits_BK), standardized(teacher_logits_BK), temperature)


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; it has no state."""
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        return lskd(inputs.student_logits_BK, given(inputs.teacher_logits_BK, "teacher's logits"), config.temperature)

    return Float32Loss(formula)
