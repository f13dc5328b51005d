"""Attention transfer: the student's maps are active where the teacher's are (Zagoruyko & Komodakis 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor

    from sweeper.losses import LossContext
    from sweeper.losses._module import Float32Loss

PAPER = "Zagoruyko & Komodakis 2017, arXiv 1612.03928"
PUBLISHED_WEIGHT = 1000.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """The larger `p`, the more the most active channels count."""

    kind: Literal["at"] = "at"
    p: Annotated[float, Field(ge=1, le=100)] = 2.0


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor, p: float) -> Tensor:
    """mean (q(mS) - q(mT))^2 over batch and pixels, q = L2norm(mean_c |m_c|^p), in [0, 2 / HW].

    Maps of one size; the channels may differ. Zagoruyko & Komodakis 2017, "Paying more attention to attention",
    arXiv 1612.03928, eq. 2, with the mean of squares in place of a norm, as in the authors' code and in RepDistiller.
    """
    from sweeper.losses._maps import attention

    return (attention(student_BCHW, p) - attention(teacher_BCHW, p)).square().mean()


def check(_: Config, context: LossContext) -> None:
    """Some pair must have pixels to choose from."""
    from sweeper.losses._maps import spatial_pairs

    spatial_pairs(context, "at")


def build(config: Config, context: LossContext) -> Float32Loss:
    """The sum over the pairs of maps; it has no state.

    The larger map of a pair is pooled to the size of the smaller, as in RepDistiller. Pairs with a single pixel in
    common say nothing and are left out (ours).
    """
    from sweeper.losses._maps import over_spatial_pairs
    from sweeper.losses._module import Float32Loss

    return Float32Loss(
        over_spatial_pairs(context, "at", lambda student, teacher: attention_transfer(student, teacher, config.p))
    )
