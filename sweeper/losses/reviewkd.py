"""Knowledge review: deep student maps, fused into shallower ones, regress the teacher's (Chen et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Chen et al. 2021, arXiv 2104.09044"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"maps", "embedding"})
# Side lengths of the pooled maps in the hierarchical context loss.
CONTEXTS = (4, 2, 1)


class Config(LossSettings):
    """`width` bounds the channels of the fused maps; `warmup` is the share of the training in which the loss ramps up.

    Defaults of the authors' code for CIFAR-100: at most 512 channels, 20 of 240 epochs.
    """

    kind: Literal["reviewkd"] = "reviewkd"
    width: Annotated[int, Field(ge=1, le=65536)] = 512
    warmup: Annotated[float, Field(ge=0, lt=1)] = 1 / 12


def hierarchical_context(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Mean squared difference of two maps of one shape, and of their poolings to 4 x 4, 2 x 2 and 1 x 1 pixels; >= 0.

    The weights 1, 1/2, 1/4, 1/8 are divided by their sum; poolings that are not smaller than the map are skipped, and
    the weights close up. Chen et al. 2021, "Distilling knowledge via knowledge review", arXiv 2104.09044, with the
    weights of the authors' code.
    """
    from torch.nn import functional as F

    difference_BCHW = student_BCHW - teacher_BCHW
    total, weight, weights = difference_BCHW.square().mean(), 1.0, 1.0
    for side in CONTEXTS:
        if side < min(difference_BCHW.shape[2:]):
            weight /= 2
            weights += weight
            # pooling is linear: the difference of two poolings is the pooling of the difference
            total = total + weight * F.adaptive_avg_pool2d(difference_BCHW, side).square().mean()
    return total / weights


def fuse(own_BCHW: Tensor, deeper_BCHW: Tensor, gates_B2HW: Tensor) -> Tensor:
    """The first gate times a level's own map plus the second times what comes from the deeper levels."""
    return gates_B2HW[:, :1] * own_BCHW + gates_B2HW[:, 1:] * deeper_BCHW


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = sum over levels of hierarchical_context(output(r_i), mT_i), from the deepest level to the shallowest.

        r_i = fuse(x_i, up(r_i+1), sigmoid(conv(x_i, up(r_i+1)))),  x_i = BN(conv(mS_i)),  r_n = x_n

    The last level is the pooled embedding, as a map of one pixel. up and the way to the teacher's size repeat the
    nearest pixel; output is a 3 x 3 convolution with BatchNorm; the fused maps' width is the student's embedding's, at
    most `width`: as in the authors' code and in mdistiller. They read the teacher before its last activation in each
    stage, here it is what the stages give (ours).
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    from sweeper.losses import MapShape
    from sweeper.losses._maps import pairs
    from sweeper.losses._module import Float32Loss, given

    students = (*context.student_maps, MapShape(context.student_dim, 1, 1))
    teachers = (*context.teacher_maps, MapShape(context.teacher_dim, 1, 1))
    width = min(config.width, context.student_dim)

    def normed(channels_in: int, channels_out: int, kernel_size: int) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        return nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        pooled = inputs.student_embedding_BD, given(inputs.teacher_embedding_BT, "teacher's embedding")
        levels = [*pairs(inputs), (pooled[0][:, :, None, None], pooled[1][:, :, None, None])]
        review_BCHW, terms = None, []
        for i, (student_BCHW, teacher_BCHW) in reversed(list(enumerate(levels))):
            own_BCHW = loss.get_submodule(f"inward.{i}")(student_BCHW)
            if review_BCHW is not None:
                deeper_BCHW = F.interpolate(review_BCHW, own_BCHW.shape[2:])
                gates_B2HW = loss.get_submodule(f"gates.{i}")(torch.cat([own_BCHW, deeper_BCHW], dim=1)).sigmoid()
                own_BCHW = fuse(own_BCHW, deeper_BCHW, gates_B2HW)
            review_BCHW = F.interpolate(own_BCHW, teacher_BCHW.shape[2:])
            terms.append(hierarchical_context(loss.get_submodule(f"outward.{i}")(review_BCHW), teacher_BCHW))
        return torch.stack(terms).sum()

    parts = {
        "inward": nn.ModuleList(normed(student.channels, width, 1) for student in students),
        "gates": nn.ModuleList(nn.Conv2d(2 * width, 2, kernel_size=1) for _ in students[1:]),
        "outward": nn.ModuleList(normed(width, teacher.channels, 3) for teacher in teachers),
    }
    warmup = config.warmup
    return Float32Loss(formula, parts, ramp=lambda progress: min(progress / warmup, 1.0) if warmup else 1.0)
