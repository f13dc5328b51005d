"""Invariance to the teacher, with variance and covariance of the student held (VICReg, Bardes et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.errors import InputError
from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Bardes et al. 2022, arXiv 2105.04906"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "pool"})


class Config(LossSettings):
    """The paper's lambda, mu and nu; they stand inside the loss, `weight` before it."""

    kind: Literal["vicreg"] = "vicreg"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    w_invariance: Annotated[float, Field(ge=0)] = 25.0
    w_variance: Annotated[float, Field(ge=0)] = 25.0
    w_covariance: Annotated[float, Field(ge=0)] = 1.0


def variance(z_BP: Tensor) -> Tensor:
    """mean_p max(0, 1 - sqrt(var_p + 1e-4)), unbiased variances over the batch; in [0, 0.99].

    Bardes et al. 2022, arXiv 2105.04906, eq. 1 and 2, with gamma = 1 and epsilon = 1e-4.

    Raises:
        ValueError: a batch of one does not vary.
    """
    if len(z_BP) < 2:
        raise ValueError(f"the variance over a batch needs at least 2 rows, got {len(z_BP)}")
    return (1 - (z_BP.var(dim=0) + 1e-4).sqrt()).clamp(min=0).mean()


def covariance(z_BP: Tensor) -> Tensor:
    """sum_{p != q} C_pq^2 / P with the unbiased covariance C over the batch; >= 0 (the paper's eq. 3 and 4)."""
    centred_BP = z_BP - z_BP.mean(dim=0)
    covariance_PP = centred_BP.T @ centred_BP / (len(z_BP) - 1)
    others_PP = covariance_PP - covariance_PP.diagonal().diag()
    return others_PP.square().sum() / z_BP.shape[1]


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = 25 mean (zS - zT)^2 + 25 variance(zS) + 1 covariance(zS), zS = projector(eS), zT = (eT - mean) / std.

    Bardes et al. 2022, eq. 6, with the mean over columns in the first term, as in the authors' code. The teacher's side
    is fixed, so that only the student's has a variance to hold and a covariance to lower (ours). The teacher's
    embedding is standardised by the pool's mean and standard deviation: variance 1 is then the teacher's own (ours).
    Its columns that do not vary are left out (ours).

    Raises:
        InputError: none of them varies.
    """
    from sweeper.losses._module import Float32Loss, given, projector
    from sweeper.losses._pool import mean_and_std

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
        student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        alive_BP = embedding_BT[:, loss.get_buffer("columns_P")]
        teacher_BP = (alive_BP - loss.get_buffer("mean_P")) / loss.get_buffer("std_P")
        return (
            config.w_invariance * (student_BP - teacher_BP).square().mean(),
            config.w_variance * variance(student_BP),
            config.w_covariance * covariance(student_BP),
        )

    pool_NT = given(context.pool().embedding_NT, "pool's embeddings")
    mean_T, std_T = mean_and_std(pool_NT)
    columns_P = std_T.nonzero().flatten()
    if not len(columns_P):
        raise InputError(
            "vicreg needs a teacher whose embeddings differ between images, and those of the "
            f"{len(pool_NT)} training images are all the same; use another teacher or another loss"
        )
    parts = {"student_projector": projector(config.projector, context.student_dim, len(columns_P))}
    buffers = {"columns_P": columns_P, "mean_P": mean_T[columns_P].float(), "std_P": std_T[columns_P].float()}
    return Float32Loss(formula, parts, buffers)
