"""A hint: regression of one of the teacher's intermediate maps from the student's (FitNets, Romero et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Romero et al. 2015, arXiv 1412.6550"
PUBLISHED_WEIGHT = 100.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """`depth` says which pair gives the hint: 0 the shallowest, 1 the deepest, .5 the middle one."""

    kind: Literal["fitnet"] = "fitnet"
    depth: Annotated[float, Field(ge=0, le=1)] = 0.5


def pair_at(depth: float, num_pairs: int) -> int:
    """Number of the pair nearest to a relative depth in [0, 1]; the deeper one of two that are equally near."""
    return int(depth * (num_pairs - 1) + 0.5)


def hint(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """mean (mS - mT)^2 over batch, channels and pixels, of maps of one shape; >= 0.

    Romero et al. 2015, "FitNets: hints for thin deep nets", arXiv 1412.6550, eq. 3, with a mean in place of half a sum,
    as in RepDistiller, from where the published weight of 100 is.
    """
    return (student_BCHW - teacher_BCHW).square().mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = hint(conv(mS), mT) on one pair of maps, with a trained 1 x 1 convolution to the teacher's channels.

    The paper fits the sizes by the convolution's kernel; here the larger map is pooled to the smaller (ours). The paper
    trains on the hint first and distils afterwards; here both losses are minimised together (ours).
    """
    from sweeper.losses._maps import connector, pairs, same_size
    from sweeper.losses._module import Float32Loss

    number = pair_at(config.depth, len(context.student_maps))

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BCHW, teacher_BCHW = same_size(*pairs(inputs)[number])
        return hint(loss.get_submodule("connector")(student_BCHW), teacher_BCHW)

    channels = context.student_maps[number].channels, context.teacher_maps[number].channels
    return Float32Loss(formula, {"connector": connector(*channels, norm=False)})
