"""Contrast to an image's own teacher vector and to one of its bag of neighbours (BINGO, Xu et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.errors import InputError
from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Xu et al. 2022, arXiv 2107.01691"
PUBLISHED_WEIGHT = 1.0
NEEDS = frozenset({"embedding", "index", "pool"})
IN_ANY_ORDER = False


class Config(LossSettings):
    """`neighbours` is the size of a bag without the image itself; temperature and weights are those of the code."""

    kind: Literal["bingo"] = "bingo"
    projector: Literal["linear", "mocov2", "simclr", "simclrv2"] = "mocov2"
    neighbours: Annotated[int, Field(ge=1, le=65536)] = 5
    tau: Annotated[float, Field(gt=0)] = 0.2
    w_intra: Annotated[float, Field(ge=0)] = 0.5
    w_inter: Annotated[float, Field(ge=0)] = 0.5


def contrast(anchor_BT: Tensor, positive_BT: Tensor, others_BT: Tensor, skip_BB: Tensor, tau: float) -> Tensor:
    """mean_i log( 1 + sum_{j: not skip_ij} exp((a_i o_j - a_i p_i) / tau) ), unit vectors; >= 0.

    InfoNCE of each anchor with its positive against the others (Xu et al. 2022, arXiv 2107.01691).
    """
    import torch

    positive_B1 = (anchor_BT * positive_BT).sum(dim=1, keepdim=True)
    others_BB = (anchor_BT @ others_BT.T).masked_fill(skip_BB, -torch.inf)
    score_BB1 = torch.cat([positive_B1, others_BB], dim=1) / tau
    return -torch.log_softmax(score_BB1, dim=1)[:, 0].mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = .5 contrast(zS, own teacher vector) + .5 contrast(zS, teacher vector of a bag member), in [0, inf).

    Xu et al. 2022, "Bag of instances aggregation boosts self-supervised distillation". An image's bag is its nearest
    neighbours by cosine in the teacher's embedding over the pool, found once; a member is drawn for each image and
    batch from torch's global generator. Deviations from the paper (ours):

    - negatives are the batch's other teacher vectors instead of a queue of 65536; the drawn member itself is none;
    - the member's teacher vector is that of its canonical view, from the pool, and the student does not see the member:
      the paper passes it through both networks, as an anchor too, and adds a term on a CutMix of both images;
    - the teacher's vector is its pooled embedding without a head, the student's is projected to its width;
    - both terms count from the first epoch on; the authors' code adds the second one after some epochs.

    The pool's embeddings are not part of the state, the bags are.

    Raises:
        InputError: a pool of one image has no neighbours.
    """
    import torch
    from torch.nn import functional as F

    from sweeper.losses._module import Float32Loss, given, projector
    from sweeper.losses._pool import nearest_neighbours

    def formula(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        student_BT = F.normalize(loss.get_submodule("student_projector")(inputs.student_embedding_BD), dim=1)
        teacher_BT = F.normalize(given(inputs.teacher_embedding_BT, "teacher's embedding"), dim=1)
        bag_BM = loss.get_buffer("bags_NM")[inputs.index_B]
        drawn_B1 = torch.randint(bag_BM.shape[1], (len(bag_BM), 1), device=bag_BM.device)
        member_B1 = bag_BM.gather(1, drawn_B1)
        member_BT = F.normalize(loss.get_buffer("pool_NT")[member_B1[:, 0]].float(), dim=1)
        own_BB = inputs.index_B[:, None] == inputs.index_B
        intra = contrast(student_BT, teacher_BT, teacher_BT, own_BB, config.tau)
        inter = contrast(student_BT, member_BT, teacher_BT, own_BB | (inputs.index_B == member_B1), config.tau)
        return config.w_intra * intra, config.w_inter * inter

    pool_NT = given(context.pool().embedding_NT, "pool's embeddings")
    if len(pool_NT) < 2:
        raise InputError(
            "bingo compares an image with its neighbours, and the training pool has "
            f"{len(pool_NT)} image; use more images or another loss"
        )
    loss = Float32Loss(
        formula,
        {"student_projector": projector(config.projector, context.student_dim, context.teacher_dim)},
        {"bags_NM": nearest_neighbours(pool_NT, config.neighbours)},
    )
    loss.register_buffer("pool_NT", pool_NT.contiguous(), persistent=False)
    return loss
