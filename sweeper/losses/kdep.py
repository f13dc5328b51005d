"""Feature regression on the teacher's principal components, without labels or logits (KDEP, He et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.errors import InputError
from sweeper.losses import LossSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sweeper.losses import LossContext, LossInputs
    from sweeper.losses._module import Float32Loss

PAPER = "He et al. 2022, arXiv 2203.05180"
PUBLISHED_WEIGHT = 3.0
NEEDS = frozenset({"pre_embedding", "pool"})
CHUNK_ROWS = 4096
# Embeddings are cached in fp16 (11 significant bits): a direction whose standard deviation is below 2^-11 of the root
# mean square of the largest entry holds rounding, which `power_temperature` would blow up to the size of a signal.
FP16_ROUNDING = 2.0**-11


class Config(LossSettings):
    """The paper's T and n; its weight is 3 or 20, depending on the teacher."""

    kind: Literal["kdep"] = "kdep"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    power: Annotated[float, Field(ge=1, le=100)] = 3.0


def principal_components(embeddings_NT: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Mean (T) and leading eigenvectors (T x C, orthonormal columns, widest first) of the pool, in float64.

    From the covariance, summed over chunks of rows, instead of an SVD of N x T. C is `num_components` or less: no more
    than the pool has directions that vary. An eigenvector's sign is arbitrary; here its largest entry is positive.

    Raises:
        InputError: nothing varies, as with one image or a teacher whose feature is dead.
    """
    import torch

    num_rows = len(embeddings_NT)
    chunks: tuple[Tensor, ...] = torch.split(embeddings_NT, CHUNK_ROWS)
    mean_T = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / num_rows
    covariance_TT = mean_T.new_zeros(len(mean_T), len(mean_T))
    for chunk in chunks:
        centred_BT = chunk.double() - mean_T
        covariance_TT += centred_BT.T @ centred_BT / num_rows
    variances_T, vectors_TT = (part.flip(-1) for part in torch.linalg.eigh(covariance_TT))
    rounding = (mean_T.square() + covariance_TT.diagonal()).max() * FP16_ROUNDING**2
    num_kept = min(num_components, int((variances_T > rounding).sum()))
    if num_kept < 1:
        raise InputError(
            "kdep needs a teacher whose embeddings differ between images, and those of the "
            f"{num_rows} training images are all the same; use another teacher or another loss"
        )
    vectors_TC = vectors_TT[:, :num_kept]
    largest_1C = vectors_TC.abs().argmax(dim=0, keepdim=True)
    return mean_T, vectors_TC * vectors_TC.gather(0, largest_1C).sign()


def power_temperature(features: Tensor, temperature: float, power: float) -> Tensor:
    """sign(f) |f / T|^(1/n), elementwise: brings the wide components down to the scale of the narrow ones."""
    return features.sign() * (features.abs() / temperature).pow(1 / power)


def build(config: Config, context: LossContext) -> Float32Loss:
    """L = mean_{batch, component} (fS - f'')^2, f'' = sign(f') |f' / T|^(1/n), f' = (f - mu) V[:, :D].

    He et al. 2022, "Knowledge distillation as efficient pre-training: faster convergence, higher data-efficiency, and
    better transferability", arXiv 2203.05180: mu and V are the mean and the principal directions of the teacher's
    embeddings over the training pool's canonical views. The alignment to the student's width D is not trained.

    Both sides are pooled from before the last activation, as in the paper: after a ReLU a student could not follow a
    target below 0. For architectures that end in a norm (ViT, ConvNeXt) that is from before the norm (ours).

    One thing differs from the paper. Where the student is wider than the teacher, or than the number of directions in
    which the pool varies, only the first C entries of its features have a target, the mean runs over those, and the
    others stay free (ours): padded targets would teach the student dead features.
    """
    import torch

    from sweeper.losses._module import Float32Loss, given

    def formula(loss: nn.Module, inputs: LossInputs) -> Tensor:
        components_TC = loss.get_buffer("components_TC")
        centred_BT = given(inputs.teacher_pre_embedding_BT, "teacher's pre-activation embedding") - loss.get_buffer(
            "mean_T"
        )
        target_BC = power_temperature(centred_BT @ components_TC, config.temperature, config.power)
        student_BC = given(inputs.student_pre_embedding_BD, "student's pre-activation embedding")[
            :, : components_TC.shape[1]
        ]
        return (student_BC - target_BC).square().mean()

    pool_NT = given(context.pool().pre_embedding_NT, "pool's pre-activation embeddings")
    mean_T, components_TC = principal_components(pool_NT, context.student_dim)
    buffers = {"mean_T": mean_T.to(torch.float32), "components_TC": components_TC.to(torch.float32)}
    return Float32Loss(formula, buffers=buffers)
