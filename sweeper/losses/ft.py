"""Factor transfer without trained parts: where the deepest maps are active, in L1 distance (after Kim et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Kim et al. 2018, arXiv 1802.04977"
PUBLISHED_WEIGHT = 200.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """`p` is the power of the activations in a factor, `distance` that of the difference of two factors."""

    kind: Literal["ft"] = "ft"
    p: Annotated[float, Field(ge=1, le=100)] = 2.0
    distance: Annotated[float, Field(ge=1, le=100)] = 1.0


def factor_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor, p: float, distance: float) -> Tensor:
    """mean |q(mS) - q(mT)|^distance over batch and pixels, q = L2norm(mean_c |m_c|^p); >= 0.

    Maps of one size; the channels may differ. Kim et al. 2018, "Paraphrasing complex network: network compression via
    factor transfer", arXiv 1802.04977, compares normalised factors; this factor is the one of RepDistiller.
    """
    from sweeper.losses._maps import attention

    return (attention(student_BCHW, p) - attention(teacher_BCHW, p)).abs().pow(distance).mean()


def check(_: Config, context: LossContext) -> None:
    """Some pair must have pixels to choose from."""
    from sweeper.losses._maps import spatial_pairs

    spatial_pairs(context, "ft")


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss on the deepest pair of maps that has more than one pixel in common; it has no state.

    The paper's factors come from a paraphraser, an autoencoder trained on the teacher beforehand, and from a translator
    trained with the student. Both are left out here: a factor is the normalised mean power of the channels, as in
    RepDistiller's loss, where it stands behind the two networks (ours). The larger map is pooled to the smaller.
    """
    from sweeper.losses._maps import pairs, same_size, spatial_pairs
    from sweeper.losses._module import Float32Loss

    number = spatial_pairs(context, "ft")[-1]

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        return factor_transfer(*same_size(*pairs(inputs)[number]), config.p, config.distance)

    return Float32Loss(formula)
