"""Distances of pairs and angles of triples of images, taken over from the teacher (RKD, Park et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Park et al. 2019, arXiv 1904.05068"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`w_distance` and `w_angle` stand inside the loss; the angles take memory of B^3 numbers."""

    kind: Literal["rkd"] = "rkd"
    w_distance: Annotated[float, Field(ge=0)] = 25.0
    w_angle: Annotated[float, Field(ge=0)] = 50.0


def distances(embedding_BD: Tensor) -> Tensor:
    """|| e_i - e_j ||_2, B x B; from the differences, since G_ii + G_jj - 2 G_ij loses near pairs in float32."""
    import torch

    return torch.cdist(embedding_BD, embedding_BD, compute_mode="donot_use_mm_for_euclid_dist")


def relative(distance_BB: Tensor) -> Tensor:
    """Distances divided by their mean over the B (B - 1) pairs; 0 where all rows are equal."""
    import torch

    num_rows = len(distance_BB)
    mean = distance_BB.sum() / (num_rows * (num_rows - 1))
    return torch.where(mean > 0, distance_BB / torch.where(mean > 0, mean, 1.0), 0.0)


def angles(distance_BB: Tensor) -> Tensor:
    """cos of the angle at j between i and k, as entry [j, i, k] of B x B x B; 0, without slope, where i or k equals j.

    From the law of cosines, so that no B x B x D differences are held: (d_ji^2 + d_jk^2 - d_ik^2) / (2 d_ji d_jk).
    """
    import torch

    squared_BB = distance_BB.square()
    twice_dot_BBB = squared_BB[:, :, None] + squared_BB[:, None, :] - squared_BB
    apart_BB = distance_BB > 0
    length_BB = torch.where(apart_BB, distance_BB, 1.0)
    cosine_BBB = twice_dot_BBB / (2 * length_BB[:, :, None] * length_BB[:, None, :])
    return torch.where(apart_BB[:, :, None] & apart_BB[:, None, :], cosine_BBB, 0.0)


def rkd(student_BD: Tensor, teacher_BT: Tensor) -> tuple[Tensor, Tensor]:
    """mean huber(relative distance) over B^2, and mean huber(cos of angle) over B^3, of student minus teacher; >= 0.

    huber(x) = x^2 / 2 for |x| <= 1, else |x| - 1/2. The widths may differ; shifts, rotations and factors of one side
    change nothing. Park et al. 2019, "Relational knowledge distillation", arXiv 1904.05068. The means include the
    diagonal pairs and the triples with equal members, which are 0 but for the B (B - 1) triples of i = k, as in the
    authors' code.

    Raises:
        ValueError: a batch of one has no pair.
    """
    from torch.nn import functional as F

    if len(student_BD) < 2:
        raise ValueError(f"rkd is over pairs: it needs a batch of at least 2, got {len(student_BD)}")
    student_BB, teacher_BB = distances(student_BD), distances(teacher_BT)
    distance = F.smooth_l1_loss(relative(student_BB), relative(teacher_BB))
    return distance, F.smooth_l1_loss(angles(student_BB), angles(teacher_BB))


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = 25 distance + 50 angle; it has no state.

    The two weights are those of RepDistiller. Pairs and triples are those of this
    batch, and of this worker's share of it where several train one student.
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        distance, angle = rkd(inputs.student_embedding_BD, embedding_BT)
        return config.w_distance * distance, config.w_angle * angle

    return Float32Loss(formula)
