"""Variational information distillation on intermediate maps: regression with a trained variance (Ahn et al. 2019)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Ahn et al. 2019, arXiv 1904.05835"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"maps"})
# The variance stays above it, as in the authors' code.
LEAST_VARIANCE = 1e-5


class Config(LossSettings):
    """`initial_variance` is that of each of the teacher's channels at the start."""

    kind: Literal["vid_maps"] = "vid_maps"
    initial_variance: Annotated[float, Field(ge=1e-3, le=1e3)] = 5.0


def gaussian_terms(mean_BCHW: Tensor, teacher_BCHW: Tensor, variance_C: Tensor) -> tuple[Tensor, Tensor]:
    """mean (mT - mu)^2 / (2 sigma_c^2) and mean log(sigma_c^2) / 2, over batch, channels and pixels.

    Their sum is the negative log-likelihood of the teacher's map but for log(2 pi) / 2. The first is >= 0, the second
    of any sign. Ahn et al. 2019, "Variational information distillation for knowledge transfer", arXiv 1904.05835,
    its Gaussian for intermediate maps, with a mean in place of a sum, as in RepDistiller.
    """
    squared_BCHW = (teacher_BCHW - mean_BCHW).square() / (2 * variance_C[:, None, None])
    return squared_BCHW.mean(), variance_C.log().mean() / 2


def build(config: Config, context: LossContext) -> Float32Loss:
    """The two terms, each summed over the pairs of maps, with mu = regressor(mS) and sigma_c^2 = softplus(trained).

    The regressor is that of RepDistiller: three 1 x 1 convolutions of the teacher's width without bias, and ReLUs. The
    larger map of a pair is pooled to the size of the smaller, the student's before its regressor.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from sweeper.losses._maps import pairs, same_size
    from sweeper.losses._module import Float32Loss

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        terms = []
        for i, pair in enumerate(pairs(inputs)):
            student_BCHW, teacher_BCHW = same_size(*pair)
            variance_C = F.softplus(loss.get_parameter(f"raw_variances.{i}")) + LEAST_VARIANCE
            terms.append(gaussian_terms(loss.get_submodule(f"regressors.{i}")(student_BCHW), teacher_BCHW, variance_C))
        squared, logarithm = zip(*terms, strict=True)
        return torch.stack(squared).sum(), torch.stack(logarithm).sum()

    def regressor(channels_in: int, channels_out: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(channels_out, channels_out, kernel_size=1, bias=False)]
        return nn.Sequential(*layers)

    shapes = list(zip(context.student_maps, context.teacher_maps, strict=True))
    raw = math.log(math.expm1(config.initial_variance - LEAST_VARIANCE))
    parts = {
        "regressors": nn.ModuleList(regressor(student.channels, teacher.channels) for student, teacher in shapes),
        "raw_variances": nn.ParameterList(torch.full((teacher.channels,), raw) for _, teacher in shapes),
    }
    return Float32Loss(formula, parts)
