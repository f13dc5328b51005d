"""Distillation of the labelled class and of the other classes apart (decoupled KD, Zhao et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Zhao et al. 2022, arXiv 2203.08679"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"logits", "labels"})


class Config(LossSettings):
    """`warmup` is the share of the training over which the loss grows from 0 to its weight: 20 of 240 epochs."""

    kind: Literal["dkd"] = "dkd"
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 8.0
    temperature: Annotated[float, Field(gt=0)] = 4.0
    warmup: Annotated[float, Field(ge=0, le=1)] = 1 / 12


def decoupled(logits_BK: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (p_y, 1 - p_y), B x 2, and of the other classes' probabilities given that it is not y, B x K-1."""
    import torch
    from torch.nn import functional as F

    others_K1 = torch.arange(logits_BK.shape[1] - 1, device=logits_BK.device)
    others_BK1 = logits_BK.gather(1, others_K1 + (others_K1 >= labels_B[:, None]))
    target_B = logits_BK.gather(1, labels_B[:, None]).squeeze(1)
    binary_B2 = torch.stack((target_B, others_BK1.logsumexp(dim=1)), dim=1)
    return F.log_softmax(binary_B2, dim=1), F.log_softmax(others_BK1, dim=1)


def dkd(
    student_logits_BK: Tensor, teacher_logits_BK: Tensor, labels_B: Tensor, hard_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each times T^2, mean over the rows with a hard label; >= 0 both, and 0 where no row has one.

    TCKD = KL( (pT_y, 1 - pT_y) || (pS_y, 1 - pS_y) ), and NCKD = KL between the distributions over the K - 1 classes
    other than y, at temperature T. TCKD + (1 - pT_y) NCKD of a row is its plain KD. Zhao et al. 2022, "Decoupled
    knowledge distillation", arXiv 2203.08679.
    """
    import torch
    from torch.nn import functional as F

    known_B = torch.where(hard_B, labels_B, 0)  # elsewhere a label may be no class at all
    student, teacher = (decoupled(z_BK / temperature, known_B) for z_BK in (student_logits_BK, teacher_logits_BK))
    num_hard = hard_B.sum().clamp(min=1)

    def divergence(student_log: Tensor, teacher_log: Tensor) -> Tensor:
        kl_B = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)
        return torch.where(hard_B, kl_B, 0.0).sum() / num_hard * temperature**2

    return divergence(student[0], teacher[0]), divergence(student[1], teacher[1])


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = alpha TCKD + beta NCKD, times min(1, progress / warmup).

    The authors' factor rises from epoch to epoch, here it does so from step to step (ours). Images without a hard label
    do not count: neither in the sums nor in the number that divides them (ours).
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        teacher_logits_BK = given(inputs.teacher_logits_BK, "teacher's logits")
        tckd, nckd = dkd(
            inputs.student_logits_BK, teacher_logits_BK, inputs.labels_B, inputs.hard_B, config.temperature
        )
        return config.alpha * tckd + config.beta * nckd

    def ramp(progress: float) -> float:
        return min(1.0, progress / config.warmup) if config.warmup > 0 else 1.0

    return Float32Loss(formula, ramp=ramp)
