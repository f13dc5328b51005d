"""Each image's similarities to the batch as a probability distribution (PKT, Passalis & Tefas 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "Passalis & Tefas 2018, arXiv 1803.10837"
PUBLISHED_WEIGHT = 30000.0
NEEDS = frozenset({"embedding"})
# Added to both probabilities before the logarithm, as in the authors' code.
EPS = 1e-7


class Config(LossSettings):
    """Nothing to choose but the weight."""

    kind: Literal["pkt"] = "pkt"


def neighbour_probabilities(embedding_BD: Tensor) -> Tensor:
    """p_ij = s_ij / sum_j s_ij with s_ij = (1 + cos(e_i, e_j)) / 2, B x B; the rows sum to 1.

    An embedding of length 0 has cosine 0 with all, itself included.
    """
    from sweeper.losses._module import unit

    z_BD = unit(embedding_BD, dim=1)
    similarity_BB = (z_BD @ z_BD.T + 1) / 2
    return similarity_BB / similarity_BB.sum(dim=1, keepdim=True)


def pkt(student_BD: Tensor, teacher_BT: Tensor) -> Tensor:
    """mean_ij pT_ij log( (pT_ij + eps) / (pS_ij + eps) ); >= 0 but for eps, which is 1e-7.

    A mean over all B^2 entries, 1 / B of the mean KL of a row: hence the published weight. The widths may differ; a
    rotation of one side's embeddings or a factor of a row changes nothing. Passalis & Tefas 2018, "Learning deep
    representations with probabilistic knowledge transfer", arXiv 1803.10837, with the cosine kernel.
    """
    student_BB, teacher_BB = neighbour_probabilities(student_BD), neighbour_probabilities(teacher_BT)
    return (teacher_BB * ((teacher_BB + EPS) / (student_BB + EPS)).log()).mean()


def build(config: Config, context: LossContext) -> Float32Loss:
    """The loss of one trial; it has no state.

    An image's own similarity is one of its row, as in the authors' code. The rows are those of this batch, and of this
    worker's share of it where several train one student.
    """
    from sweeper.losses._module import Float32Loss, given

    def formula(_: nn.Module, inputs: LossInputs) -> Tensor:
        return pkt(inputs.student_embedding_BD, given(inputs.teacher_embedding_BT, "teacher's embedding"))

    return Float32Loss(formula)
