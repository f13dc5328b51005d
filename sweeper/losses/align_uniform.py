"""Alignment with the teacher and uniformity on the sphere, through two trained projectors (Farhat & Chen 2024)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Farhat & Chen 2024, arXiv 2404.03263"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`alpha` and `t` as in Wang & Isola 2020; `w_align` and `w_unif` stand inside the loss, `weight` before it."""

    kind: Literal["align_uniform"] = "align_uniform"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    alpha: Annotated[float, Field(gt=0, le=100)] = 2.0
    t: Annotated[float, Field(gt=0)] = 2.0
    w_align: Annotated[float, Field(ge=0)] = 1.0
    w_unif: Annotated[float, Field(ge=0)] = 1.0


def alignment(student_BP: Tensor, teacher_BP: Tensor, alpha: float) -> Tensor:
    """mean_i || zS_i - zT_i ||_2^alpha, in [0, 2^alpha] for unit vectors.

    Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", arXiv 2005.10242, section 4.1.
    """
    import torch

    squared_B = (student_BP - teacher_BP).square().sum(dim=1)
    # below alpha = 2 the power has no slope at 0; equal vectors have nothing to learn, so theirs is set to 0
    apart_B = squared_B > 0
    return torch.where(apart_B, torch.where(apart_B, squared_B, 1.0).pow(alpha / 2), 0.0).mean()


def uniformity(z_BP: Tensor, t: float) -> Tensor:
    """log mean_{i<j} exp(-t || z_i - z_j ||_2^2), in [-4 t, 0] for unit vectors (Wang & Isola 2020, section 4.1).

    The pairs are those of this batch, and of this worker's share of it where several train one student.

    Raises:
        ValueError: a batch of one has no pair.
    """
    import torch

    num_rows = z_BP.shape[0]
    if num_rows < 2:
        raise ValueError(f"uniformity is over pairs: it needs a batch of at least 2, got {num_rows}")
    pairs = torch.pdist(z_BP).square()
    return torch.logsumexp(-t * pairs, dim=0) - math.log(pairs.numel())


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = w_align L_align(zS, zT) + w_unif (L_unif(zS) + L_unif(zT)) / 2, with z = L2norm(projector(embedding)).

    Farhat & Chen 2024, "On the surprising efficacy of distillation as an alternative to pre-training small models",
    arXiv 2404.03263. Both projectors are trained, the teacher's too: its cached embedding is raw.
    """
    from sweeper.losses._module import Float32Loss, projected, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        student_BP, teacher_BP = projected(loss, inputs)
        spread = (uniformity(student_BP, config.t) + uniformity(teacher_BP, config.t)) / 2
        return config.w_align * alignment(student_BP, teacher_BP, config.alpha), config.w_unif * spread

    parts = {
        "student_projector": projector(config.projector, context.student_dim, config.dim),
        "teacher_projector": projector(config.projector, context.teacher_dim, config.dim),
    }
    return Float32Loss(formula, parts)
