"""Activation boundaries: each neuron is on where the teacher's is, by a margin (Heo et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Heo et al. 2019, arXiv 1811.03233"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"maps"})


class Config(LossSettings):
    """`margin` is how far the student's pre-activation must be from 0, on the teacher's side of it."""

    kind: Literal["ab"] = "ab"
    margin: Annotated[float, Field(gt=0)] = 1.0


def boundary_distance(student_BCHW: Tensor, teacher_BCHW: Tensor, margin: float) -> Tensor:
    """sum max(0, margin - sign(mT) mS)^2 over channels and pixels, mean over the batch, sign(0) = -1; >= 0.

    Maps of one shape. Heo et al. 2019, "Knowledge transfer via distillation of activation boundaries formed by hidden
    neurons", arXiv 1811.03233, its loss with a squared hinge in place of the count of neurons on the wrong side.
    """
    import torch

    side_BCHW = torch.where(teacher_BCHW > 0, 1.0, -1.0)
    return (margin - side_BCHW * student_BCHW).clamp(min=0).square().sum(dim=(1, 2, 3)).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = sum_i 2^(i - n) boundary_distance(BN(conv(mS_i)), mT_i) over the pairs i = 1..n: half for each level up.

    Those weights and the 1 x 1 convolutions with BatchNorm are from the authors' code. They read both networks before
    the ReLU; a teacher's map after it has the same boundaries, and the student's becomes a pre-activation by its
    connector. A teacher without ReLU is taken to be on where it is above 0 (ours). The student's map is brought to the
    teacher's size, since a mean of activations has no boundary (ours). The paper initialises the student this way and
    distils logits afterwards; here both go together (ours).
    """
    import torch

    from sweeper.losses._maps import connectors, pairs, resized
    from sweeper.losses._module import Float32Loss

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        found = pairs(inputs)
        terms = []
        for i, (student_BCHW, teacher_BCHW) in enumerate(found):
            height, width = teacher_BCHW.shape[2:]
            connected_BCHW = loss.get_submodule(f"connectors.{i}")(resized(student_BCHW, (height, width)))
            level_weight = 2.0 ** (i + 1 - len(found))
            terms.append(level_weight * boundary_distance(connected_BCHW, teacher_BCHW, config.margin))
        return torch.stack(terms).sum()

    return Float32Loss(formula, {"connectors": connectors(context, norm=True)})
