"""The student's projected embedding is the teacher's, and so is its classifier (SimKD, Chen et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Chen et al. 2022, arXiv 2203.14001"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "classifier"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["simkd"] = "simkd"


def simkd(student_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """mean (P eS - eT)^2 over batch and columns; >= 0 (Chen et al. 2022, arXiv 2203.14001, pooled)."""
    return (student_BT - teacher_BT).square().mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = mean (P eS - eT)^2; the student's logits are W (P eS) + b with the teacher's classifier W, b, fixed.

    Chen et al. 2022, "Knowledge distillation with the reused teacher classifier". Two things differ (ours): embeddings
    are compared after the pooling, and P is one linear layer with a bias, where the paper has three convolutions. Both
    maps together are one linear classifier of the student, so that the projector costs nothing at inference.
    """
    import torch

    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        return simkd(student_BT, given(inputs.teacher_embedding_BT, "teacher's embedding"))

    def classify(loss: nn.Module, embedding_BD: Tensor) -> Tensor:
        # float32 like the loss, also where autocast hands over bf16
        with torch.autocast(embedding_BD.device.type, enabled=False):
            student_BT = loss.get_submodule("student_projector")(embedding_BD.float())
            logits_BK: Tensor = student_BT @ loss.get_buffer("weight_KT").T + loss.get_buffer("bias_K")
        return logits_BK

    weight_KT, bias_K = (tensor.detach().float().clone() for tensor in context.classifier())
    return Float32Loss(
        formula,
        {"student_projector": projector("linear", context.student_dim, context.teacher_dim)},
        {"weight_KT": weight_KT, "bias_K": bias_K},
        classify=classify,
    )
