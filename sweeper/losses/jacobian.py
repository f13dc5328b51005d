"""Matching of normalised Jacobians: both networks' answers react to the same pixels (Srinivas & Fleuret 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Srinivas & Fleuret 2018, arXiv 1803.00443"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"jacobian", "logits"})


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["jacobian"] = "jacobian"


def student_jacobian(logits_BK: Tensor, images_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    """Gradient of each image's logit of its class with respect to the images, B x C x H x W, itself differentiable.

    One backward pass through the sum of the B logits: a network in which images influence each other's logits
    (BatchNorm in training) adds its part of that.

    Raises:
        ValueError: the logits were not computed from these images, or without a graph.
    """
    import torch

    if not (logits_BK.requires_grad and images_BCHW.requires_grad):
        raise ValueError(
            "the jacobian loss differentiates the student's logits by the images: these must require a gradient, and "
            "the student must not run under torch.no_grad"
        )
    with torch.enable_grad():
        total = logits_BK.gather(1, classes_B[:, None]).sum()
        (jacobian_BCHW,) = torch.autograd.grad(total, images_BCHW, create_graph=True, allow_unused=True)
    if jacobian_BCHW is None:
        raise ValueError("the jacobian loss needs logits that were computed from the images of its batch")
    return jacobian_BCHW


def jacobian_distance(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """mean over the batch of || JS / ||JS|| - JT / ||JT|| ||_2^2, in [0, 4]; a Jacobian of 0 stays 0.

    Srinivas & Fleuret 2018, "Knowledge transfer with Jacobian matching", arXiv 1803.00443, its Jacobian term for
    transfer from one architecture to another.
    """
    from sweeper.losses._module import unit

    return (unit(student_BCHW.flatten(1), dim=1) - unit(teacher_BCHW.flatten(1), dim=1)).square().sum(dim=1).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = jacobian_distance(JS, JT), J the gradient of the logit of the class that the teacher finds most likely.

    It has no state. A step holds one more backward pass, to the images, and differentiates it: the student may hold
    only operations with a second derivative, which fused attention is not.
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        classes_B = given(inputs.teacher_logits_BK, "teacher's logits").argmax(dim=1)
        images_BCHW = given(inputs.images_BCHW, "images")
        student_BCHW = student_jacobian(inputs.student_logits_BK, images_BCHW, classes_B)
        return jacobian_distance(student_BCHW, given(inputs.teacher_jacobian_BCHW, "teacher's Jacobian"))

    return Float32Loss(formula)
