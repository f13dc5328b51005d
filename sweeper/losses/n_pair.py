"""Student anchors against the teacher's embeddings of each class in the batch (N-pair loss, Sohn 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Sohn 2016, NeurIPS 2016"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "labels"})


class Config(LossSettings):
    """`l2` holds the vectors' lengths, which the loss itself does not: similarities are dot products."""

    kind: Literal["n_pair"] = "n_pair"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    l2: Annotated[float, Field(ge=0)] = 2e-3


def n_pair(student_BP: Tensor, teacher_BP: Tensor, labels_B: Tensor, hard_B: Tensor, l2: float) -> Tensor:
    """mean_i mean_{j: y_j = y_i} log sum_k exp(zS_i zT_k - zS_i zT_j) + l2 / 4 mean_i (|zS_i|^2 + |zT_i|^2); >= 0.

    All indices run over the rows with a hard label, and without two classes among them the loss is exactly 0. Where
    each class has one row the first term is log(1 + sum_{k != i} exp(zS_i zT_k - zS_i zT_i)): Sohn 2016, "Improved deep
    metric learning with multi-class N-pair loss objective", NeurIPS. Rows of one class share their positives, in
    equal parts, and the factor 1/4 stands before the lengths, as in TensorFlow's npairs_loss.
    """
    import torch

    from sweeper.losses._labels import hard_pairs

    trusted_BB, same_BB = hard_pairs(labels_B, hard_B)
    score_BB = (student_BP @ teacher_BP.T).masked_fill(~trusted_BB, -torch.inf)
    surprise_BB = torch.where(same_BB, -torch.log_softmax(score_BB, dim=1), 0.0)
    lengths_B = torch.where(hard_B, (student_BP.square() + teacher_BP.square()).sum(dim=1), 0.0)
    loss_B = surprise_BB.sum(dim=1) / same_BB.sum(dim=1) + l2 / 4 * lengths_B
    two_classes = (trusted_BB & ~same_BB).any()
    return torch.where(two_classes, loss_B.sum() / hard_B.sum().clamp(min=1), 0.0 * loss_B.sum())


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial: the student's vectors are the anchors, the teacher's the positives (ours).

    Both are projected by trained layers and, as in the paper, not normalised. An image counts as a positive of its own
    (ours: the paper pairs two images of a class).
    """
    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        teacher_BP = loss.get_submodule("teacher_projector")(embedding_BT)
        return n_pair(student_BP, teacher_BP, inputs.labels_B, inputs.hard_B, config.l2)

    parts = {
        "student_projector": projector(config.projector, context.student_dim, config.dim),
        "teacher_projector": projector(config.projector, context.teacher_dim, config.dim),
    }
    return Float32Loss(formula, parts)
