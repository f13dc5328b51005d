"""Variational information distillation of the embedding: regression with a trained variance (Ahn et al. 2019)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings
from sweeper.losses.vid_maps import LEAST_VARIANCE, gaussian_terms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "pooled form of Ahn et al. 2019, arXiv 1904.05835"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding"})


class Config(LossSettings):
    """`projector` regresses the mean; `initial_variance` is that of each entry of the teacher's embedding."""

    kind: Literal["vid"] = "vid"
    projector: Literal["linear", "mocov2"] = "mocov2"
    initial_variance: Annotated[float, Field(ge=1e-3, le=1e3)] = 5.0


def build(config: Config, context: LossContext) -> Float32Loss:
    """mean (eT - mu)^2 / (2 sigma^2) and mean log(sigma^2) / 2, with mu = proj(eS) and sigma_t^2 = softplus(trained).

    The terms of the kind vid_maps (`gaussian_terms`) on a map of one pixel, the pooled embedding (ours). The variance
    is per entry t of the teacher's embedding. The authors' regressor has three layers of the teacher's width, without
    bias; here it is one of the package's projectors (ours), which is smaller for a wide teacher.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        teacher_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
        mean_BT = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
        variance_T = F.softplus(loss.get_parameter("raw_variance.0")) + LEAST_VARIANCE
        return gaussian_terms(mean_BT[:, :, None, None], teacher_BT[:, :, None, None], variance_T)

    above = config.initial_variance - LEAST_VARIANCE
    raw = above + math.log(-math.expm1(-above))  # softplus(raw) = above, without exp(1000)
    parts: dict[str, nn.Module] = {
        "student_projector": projector(config.projector, context.student_dim, context.teacher_dim),
        "raw_variance": nn.ParameterList([torch.full((context.teacher_dim,), raw)]),
    }
    return Float32Loss(formula, parts)
