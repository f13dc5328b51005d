"""Knowledge distillation on logits at a temperature (Hinton et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Hinton et al. 2015, arXiv 1503.02531"
PUBLISHED_WEIGHT = 0.9
NEEDS = frozenset({"logits"})


class Config(LossSettings):
    """Hinton et al. take T between 1 and 20; 4 is the usual value with a task-adapted teacher."""

    kind: Literal["kl"] = "kl"
    temperature: Annotated[float, Field(gt=0)] = 4.0


def kl(student_logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(logits_T / T) || softmax(logits_S / T) ), summed over classes, mean over the batch; >= 0.

    The factor T^2 keeps the gradient's scale as T grows. Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a
    neural network", arXiv 1503.02531, section 2.
    """
    from torch.nn import functional as F

    student_log_BK = F.log_softmax(student_logits_BK / temperature, dim=1)
    teacher_log_BK = F.log_softmax(teacher_logits_BK / temperature, dim=1)
    return F.kl_div(student_log_BK, teacher_log_BK, reduction="batchmean", log_target=True) * temperature**2


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; it has no state."""
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        return kl(inputs.student_logits_BK, given(inputs.teacher_logits_BK, "teacher's logits"), config.temperature)

    return Float32Loss(formula)
