"""Distillation losses, one kind a file, and what they may see.

The contract of a kind `sweeper/losses/<kind>.py`; importing it needs no torch:

    class Config(LossSettings)  kind: Literal["<kind>"], and own bounded fields
    PAPER: str                  authors, year and arXiv number, for `sweeper kinds losses`
    PUBLISHED_WEIGHT: float     the factor that the paper or its code puts before the raw form
    NEEDS: frozenset[str]       which of `INPUTS` the loss reads, beside the student's logits and embedding
    build(config, context)      a `Float32Loss` (`sweeper.losses._module`): LossInputs -> one scalar, not yet weighted
    check(config, context)      may be left out: raises InputError with a sentence where a pair of models can not work
    IN_ANY_ORDER: bool          may be left out: False where the order of the batch's rows or a random draw counts

Parameters of the module (projectors) are trained together with the student; buffers belong to its state.

Where a kind needs one of `ONLINE`, its trials run the teacher in the loop; all others read a cache. A loss can not tell
which: the same fields hold the same tensors, up to the cache's fp16.

Shapes in this package: B batch, K classes, D width of the student's embedding, T width of the teacher's, P width of a
projection, N training images, C components or channels, H and W pixels of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sweeper.registry import Settings

if TYPE_CHECKING:
    from torch import Tensor

# What the targets pass can store, a column each.
COLUMNS = frozenset({"logits", "embedding", "pre_embedding"})
# What only a teacher in the loop can say.
ONLINE = frozenset({"maps", "jacobian"})
INPUTS = COLUMNS | ONLINE | {"classifier", "labels", "index", "pool"}


class LossSettings(Settings):
    """What every loss has.

    With `normalize` a loss is divided by its own size over the first batches, so that weight 1 means the same for each
    (`sweeper.losses._module.Normalized`); without it, it is the paper's raw form.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    normalize: bool = True


@dataclass(frozen=True)
class MapShape:
    """An intermediate map of one image."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The whole training pool's targets in the canonical view, in any float type, synthetic images included.

    A label may be read only where `hard_N`. The teacher's tensors are there if the kind's NEEDS names them.
    """

    logits_NK: Tensor | None
    embedding_NT: Tensor | None
    pre_embedding_NT: Tensor | None
    labels_N: Tensor
    hard_N: Tensor


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What is known before the first batch.

    Args:
        student_dim: width D of the student's embedding, before and after its last activation.
        teacher_dim: width T of the teacher's embedding.
        num_classes: K.
        num_samples: images in the training pool, synthetic ones included; `index_B` is below it.
        pool: reads the pool's targets; only losses whose NEEDS names "pool" may call it.
        classifier: reads the teacher's linear classifier, weight K x T and bias K; only with "classifier" in NEEDS.
        student_maps, teacher_maps: paired from shallow to deep, equally many, at least one; only with "maps" in NEEDS.
    """

    student_dim: int
    teacher_dim: int
    num_classes: int
    num_samples: int
    pool: Callable[[], Pool]
    classifier: Callable[[], tuple[Tensor, Tensor]]
    student_maps: tuple[MapShape, ...] = ()
    teacher_maps: tuple[MapShape, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """One batch: the student's outputs and the teacher's for the same views.

    The tensors of a side are there if the kind's NEEDS names them; the teacher's come in any float type (the cache
    holds fp16). A label may be read only where `hard_B`: elsewhere the image carries none that the trial trusts.

    Attributes:
        student_pre_embedding_BD, teacher_pre_embedding_BT: pooled like the embedding, from before the last activation
            (or norm) of the architecture; the embedding itself where nothing follows its last layer.
        student_maps, teacher_maps: B x C x H x W each, paired as in `LossContext`.
        images_BCHW: what the student saw, in [0, 1]; a leaf that requires a gradient, from which the student's logits
            were computed, with "jacobian" in NEEDS.
        teacher_jacobian_BCHW: gradient of the teacher's largest logit with respect to `images_BCHW`.
        progress: share of the training that is done, in [0, 1).
    """

    student_logits_BK: Tensor
    student_embedding_BD: Tensor
    labels_B: Tensor
    index_B: Tensor
    hard_B: Tensor
    student_pre_embedding_BD: Tensor | None = None
    student_maps: tuple[Tensor, ...] = ()
    teacher_logits_BK: Tensor | None = None
    teacher_embedding_BT: Tensor | None = None
    teacher_pre_embedding_BT: Tensor | None = None
    teacher_maps: tuple[Tensor, ...] = ()
    images_BCHW: Tensor | None = None
    teacher_jacobian_BCHW: Tensor | None = None
    progress: float = 0.0
