"""Neuron selectivity transfer: one distribution of channel patterns in both maps (Huang & Wang 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor

    from sweeper.losses import LossContext
    from sweeper.losses._module import Float32Loss

PAPER = "Huang & Wang 2017, arXiv 1707.01219"
PUBLISHED_WEIGHT = 50.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """Nothing to choose but the weight: the kernel is the polynomial one of degree 2."""

    kind: Literal["nst"] = "nst"


def mean_kernel(a_BCX: Tensor, b_BDX: Tensor) -> Tensor:
    """mean_{b,c,d} <a_bc, b_bd>^2, by the smaller of two Gram matrices: C x D, or X x X as ||A B'||_F = <A'A, B'B>."""
    num_pixels, num_products = a_BCX.shape[2], a_BCX.shape[1] * b_BDX.shape[1]
    if num_pixels**2 < num_products:
        return ((a_BCX.mT @ a_BCX) * (b_BDX.mT @ b_BDX)).sum(dim=(1, 2)).mean() / num_products
    return (a_BCX @ b_BDX.mT).square().mean()


def squared_mmd(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over an image's channels, k(a, b) = <a, b>^2; in [0, 2].

    s and t are the maps' channels as vectors of HW pixels of length 1. Maps of one size; the numbers of channels may
    differ. Huang & Wang 2017, "Like what you like: knowledge distill via neuron selectivity transfer",
    arXiv 1707.01219, with its polynomial kernel of degree 2 and offset 0.
    """
    from sweeper.losses._module import unit

    student_BCX, teacher_BDX = (unit(map_BCHW.flatten(2), dim=2) for map_BCHW in (student_BCHW, teacher_BCHW))
    own = mean_kernel(student_BCX, student_BCX) + mean_kernel(teacher_BDX, teacher_BDX)
    return own - 2 * mean_kernel(student_BCX, teacher_BDX)


def check(_: Config, context: LossContext) -> None:
    """Some pair must have pixels to choose from."""
    from sweeper.losses._maps import spatial_pairs

    spatial_pairs(context, "nst")


def build(config: Config, context: LossContext) -> Float32Loss:
    """The sum over the pairs of maps; it has no state.

    The larger map of a pair is pooled to the size of the smaller, as in RepDistiller. Pairs with a single pixel in
    common say nothing and are left out (ours).
    """
    from sweeper.losses._maps import over_spatial_pairs
    from sweeper.losses._module import Float32Loss

    return Float32Loss(over_spatial_pairs(context, "nst", squared_mmd))
