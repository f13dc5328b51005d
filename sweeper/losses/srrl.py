"""Features that serve the teacher's classifier as its own do (SRRL, Yang et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Yang et al. 2021, ICLR 2021"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "logits", "classifier"})


class Config(LossSettings):
    """`norm_relu` is the paper's connector, for teachers whose embedding ends in a ReLU; others go below 0."""

    kind: Literal["srrl"] = "srrl"
    connector: Literal["linear", "norm_relu"] = "linear"
    w_feature: Annotated[float, Field(ge=0)] = 1.0
    w_logit: Annotated[float, Field(ge=0)] = 1.0


def srrl(
    connected_BT: Tensor, embedding_BT: Tensor, weight_KT: Tensor, bias_K: Tensor, logits_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """mean (c(eS) - eT)^2 over B x T, and mean (W c(eS) + b - logitT)^2 over B x K; >= 0 both.

    Yang et al. 2021, "Knowledge distillation via softmax regression representation learning", ICLR: feature
    matching, and softmax regression as an L2 loss on logits, each a mean as in the authors' code.
    """
    passed_BK = connected_BT @ weight_KT.T + bias_K
    return (connected_BT - embedding_BT).square().mean(), (passed_BK - logits_BK).square().mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; the connector c is trained, the teacher's classifier W, b is fixed.

    The connector works behind the pooling, the paper's on maps before it (ours). It is a linear layer (ours) unless
    `norm_relu` asks for what the paper has: a linear layer without bias, BatchNorm and ReLU.
    """
    from torch import nn

    from sweeper.losses._module import Float32Loss, given, projector

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        feature, logit = srrl(
            loss.get_submodule("connector")(inputs.student_embedding_BD),
            given(inputs.teacher_embedding_BT, "teacher's embedding"),
            loss.get_buffer("weight_KT"),
            loss.get_buffer("bias_K"),
            given(inputs.teacher_logits_BK, "teacher's logits"),
        )
        return config.w_feature * feature + config.w_logit * logit

    connector = projector("linear", context.student_dim, context.teacher_dim)
    if config.connector == "norm_relu":
        connector = nn.Sequential(
            nn.Linear(context.student_dim, context.teacher_dim, bias=False),
            nn.BatchNorm1d(context.teacher_dim),
            nn.ReLU(),
        )
    weight_KT, bias_K = (tensor.detach().float().clone() for tensor in context.classifier())
    return Float32Loss(formula, {"connector": connector}, {"weight_KT": weight_KT, "bias_K": bias_K})
