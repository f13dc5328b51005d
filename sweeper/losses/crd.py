"""Noise-contrastive estimation against banks of both sides' vectors of the pool (CRD, Tian et al. 2020)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.errors import InputError
from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs, Pool
    from sweeper.losses._module import Float32Loss

PAPER = "Tian et al. 2020, arXiv 1910.10699"
PUBLISHED_WEIGHT = 0.8
NEEDS = frozenset({"embedding", "index", "labels", "pool"})
IN_ANY_ORDER = False


class Config(LossSettings):
    """`negatives` is the number for each image and side; there are no more than the other images of the pool."""

    kind: Literal["crd"] = "crd"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "linear"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    negatives: Annotated[int, Field(ge=1, le=10**7)] = 16384
    tau: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5


def nce(score_BJ: Tensor, valid_B: Tensor, log_z: Tensor, num_images: int) -> Tensor:
    """mean_i -log h(s_i0) - sum_{j > 0} log(1 - h(s_ij)), h(s) = P / (P + (J - 1) / N), P = exp(s) / Z; >= 0.

    Column 0 is the positive, the others are negatives, which count in the rows that have some (`valid_B`). Tian et al.
    2020, "Contrastive representation distillation", arXiv 1910.10699, eq. 18; the constant Z is in the authors' code.
    """
    from torch.nn import functional as F

    log_odds_BJ = score_BJ - log_z - math.log((score_BJ.shape[1] - 1) / num_images)
    negatives_B = F.softplus(log_odds_BJ[:, 1:]).sum(dim=1) * valid_B
    return (F.softplus(-log_odds_BJ[:, 0]) + negatives_B).mean()


def log_normalizer(score_BJ: Tensor, valid_B: Tensor, num_images: int) -> Tensor:
    """log Z = log N mean exp(s), over a batch's positives and negatives; without a gradient."""
    import torch

    counts_BJ = torch.ones_like(score_BJ, dtype=torch.bool)
    counts_BJ[:, 1:] = valid_B[:, None]
    scores = score_BJ.detach().masked_fill(~counts_BJ, -torch.inf)
    return scores.flatten().logsumexp(dim=0) - counts_BJ.sum().log() + math.log(num_images)


def draw_negatives(
    draws_BJ: Tensor, own_B: Tensor, first_B: Tensor, count_B: Tensor, num_images: int
) -> tuple[Tensor, Tensor]:
    """Places of J negatives for each row among N that are sorted by class, and whether a row has any.

    A row may have any place but its own and those of its class, which are `count_B` from `first_B` on. What is left is
    cut into J equal pieces with one draw from each (uniform draws in [0, 1)): each place is equally likely, and comes
    once or not at all but at the seams, or about equally often where J is more than what is left.
    """
    import torch

    num_drawn = draws_BJ.shape[1]
    own_count_B = ((own_B < first_B) | (own_B >= first_B + count_B)).long()
    left_B1 = (num_images - count_B - own_count_B)[:, None]
    piece_J = torch.arange(num_drawn, device=draws_BJ.device, dtype=torch.float64)
    place_BJ = ((piece_J + draws_BJ) * left_B1 / num_drawn).long().clamp(max=left_B1 - 1)
    class_first_B = first_B <= own_B
    for is_class_B in (class_first_B, ~class_first_B):  # step over what is left out, the lower one first
        start_B = torch.where(is_class_B, first_B, own_B)
        length_B = torch.where(is_class_B, count_B, own_count_B)
        place_BJ = place_BJ + (place_BJ >= start_B[:, None]) * length_B[:, None]
    return place_BJ.clamp(0, num_images - 1), left_B1[:, 0] > 0


def class_order(pool: Pool, num_classes: int) -> dict[str, Tensor]:
    """The pool's images sorted by class, those without a trusted label last, as buffers.

    order_N is an image for each place, place_N a place for each image; class k begins at first_K[k] and has count_K[k].
    """
    import torch

    class_N = torch.where(pool.hard_N, pool.labels_N.long(), num_classes)
    order_N = class_N.argsort(stable=True)
    count_K = torch.bincount(class_N, minlength=num_classes + 1)[:num_classes]
    return {
        "order_N": order_N,
        "place_N": order_N.argsort(),
        "first_K": count_K.cumsum(dim=0) - count_K,
        "count_K": count_K,
    }


def _negatives(loss: nn.Module, inputs: LossInputs, num_drawn: int) -> tuple[Tensor, Tensor]:
    """Image numbers of the negatives, B x J, and which rows have any."""
    import torch

    order_N, first_K, count_K = (loss.get_buffer(name) for name in ("order_N", "first_K", "count_K"))
    class_B = torch.where(inputs.hard_B, inputs.labels_B, 0)
    first_B, count_B = first_K[class_B], torch.where(inputs.hard_B, count_K[class_B], 0)
    draws_BJ = torch.rand(len(class_B), num_drawn, device=class_B.device)
    own_B = loss.get_buffer("place_N")[inputs.index_B]
    place_BJ, valid_B = draw_negatives(draws_BJ, own_B, first_B, count_B, len(order_N))
    return order_N[place_BJ], valid_B


def _move(bank_NP: Tensor, index_B: Tensor, z_BP: Tensor, momentum: float) -> None:
    """Move a batch's rows of a bank towards its vectors, in place."""
    from torch.nn import functional as F

    mixed_BP = momentum * bank_NP[index_B] + (1 - momentum) * z_BP
    bank_NP.index_copy_(0, index_B, F.normalize(mixed_BP, dim=1))


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = NCE of the student's vectors in the teacher's bank + NCE of the teacher's vectors in the student's bank.

    Tian et al. 2020 and the authors' code: banks of N unit vectors a side, of which a batch's rows move to
    normalize(m old + (1 - m) new) after it in training mode; the positive too is a row of the bank; Z is a constant
    from the first batch. Negatives are images not known to be of the same class, drawn anew for each batch from torch's
    global generator.

    What is ours: the draw is stratified (`draw_negatives`), images without a trusted label may be anyone's negatives,
    and scores come from a product with the whole bank, B x N, which takes less memory than B x K copied rows. Where
    several workers train one student, each moves the rows of its own share of a batch.

    Raises:
        InputError: a pool of one image has no negatives.
    """
    import torch

    from sweeper.losses._module import Float32Loss, projected, projector

    num_images = context.num_samples
    num_drawn = min(config.negatives, num_images - 1)
    if num_drawn < 1:
        raise InputError(
            "crd compares an image with others, and the training pool has "
            f"{num_images} image; use more images or another loss"
        )

    def side(loss: nn.Module, z_BP: Tensor, bank: str, image_BJ: Tensor, valid_B: Tensor) -> Tensor:
        # a copy: autograd keeps it for the backward pass, and the bank moves before that
        score_BN = z_BP @ loss.get_buffer(f"{bank}_bank_NP").clone().T / config.tau
        score_BJ = score_BN.gather(1, image_BJ)
        log_z = loss.get_buffer(f"{bank}_log_z")
        estimate = torch.where(log_z.isfinite(), log_z, log_normalizer(score_BJ, valid_B, num_images))
        if loss.training:
            log_z.copy_(estimate)
        return nce(score_BJ, valid_B, estimate, num_images)

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        student_BP, teacher_BP = projected(loss, inputs)
        negative_BJ, valid_B = _negatives(loss, inputs, num_drawn)
        image_BJ = torch.cat([inputs.index_B[:, None], negative_BJ], dim=1)
        total = side(loss, student_BP, "teacher", image_BJ, valid_B) + side(
            loss, teacher_BP, "student", image_BJ, valid_B
        )
        if loss.training:
            _move(loss.get_buffer("student_bank_NP"), inputs.index_B, student_BP.detach(), config.momentum)
            _move(loss.get_buffer("teacher_bank_NP"), inputs.index_B, teacher_BP.detach(), config.momentum)
        return total

    parts = {
        "student_projector": projector(config.projector, context.student_dim, config.dim),
        "teacher_projector": projector(config.projector, context.teacher_dim, config.dim),
    }
    buffers = class_order(context.pool(), context.num_classes)
    edge = math.sqrt(3 / config.dim)  # uniform entries whose rows have length 1 in the root mean square
    for name in ("student", "teacher"):
        buffers[f"{name}_bank_NP"] = torch.empty(num_images, config.dim).uniform_(-edge, edge)
        buffers[f"{name}_log_z"] = torch.tensor(math.inf)
    return Float32Loss(formula, parts, buffers)
