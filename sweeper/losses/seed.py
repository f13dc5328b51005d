"""Similarities to a queue of the teacher's embeddings, matched as distributions (SEED, Fang et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Fang et al. 2021, arXiv 2101.04731"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "pool"})


class Config(LossSettings):
    """`queue` is the most rows of the pool to compare with; a smaller `tau` gives a sharper distribution."""

    kind: Literal["seed"] = "seed"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    queue: Annotated[int, Field(ge=1, le=10**7)] = 65536
    tau_student: Annotated[float, Field(gt=0)] = 0.2
    tau_teacher: Annotated[float, Field(gt=0)] = 0.07


def similarity_cross_entropy(
    student_BT: Tensor, teacher_BT: Tensor, queue_QT: Tensor, tau_student: float, tau_teacher: float
) -> Tensor:
    """mean_i -sum_j pT_ij log pS_ij, p_i = softmax over [zT_i, queue] of the cosines with z_i divided by tau; >= 0.

    For unit vectors. Fang et al. 2021, "SEED: self-supervised distillation for visual representation", arXiv
    2101.04731: the image's own teacher vector is one of the Q + 1 that both sides are compared with. Less the teacher's
    entropy, a constant, it is the KL divergence of CompRess (Abbasi Koohpayegani et al. 2020).
    """
    import torch
    from torch.nn import functional as F

    def scores(z_BT: Tensor, tau: float) -> Tensor:
        own_B1 = (z_BT * teacher_BT).sum(dim=1, keepdim=True)
        return torch.cat([own_B1, z_BT @ queue_QT.T], dim=1) / tau

    return F.cross_entropy(scores(student_BT, tau_student), scores(teacher_BT, tau_teacher).softmax(dim=1))


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; the student is projected to the teacher's width, the teacher's side is fixed.

    The paper fills a first-in-first-out queue from the last batches. Here the queue is the pool's canonical embeddings,
    all of them or `queue` evenly taken: the teacher does not move, so that they are never stale (ours). An image can
    meet its own canonical view among them (ours).

    The queue is not part of the state: a restarted trial reads it from the cache again.
    """
    import torch
    from torch.nn import functional as F

    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        teacher_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        return similarity_cross_entropy(
            F.normalize(student_BT, dim=1),
            F.normalize(teacher_BT, dim=1),
            loss.get_buffer("queue_QT"),
            config.tau_student,
            config.tau_teacher,
        )

    pool_NT = given(context.pool().embedding_NT, "pool's embeddings")
    num_rows, num_taken = len(pool_NT), min(len(pool_NT), config.queue)
    taken_Q = torch.arange(num_taken, device=pool_NT.device) * num_rows // num_taken
    parts = {"student_projector": projector(config.projector, context.student_dim, context.teacher_dim)}
    loss = Float32Loss(formula, parts)
    loss.register_buffer("queue_QT", F.normalize(pool_NT[taken_Q].float(), dim=1), persistent=False)
    return loss
