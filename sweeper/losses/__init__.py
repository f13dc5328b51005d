"""Distillation losses, one kind a file, and what they may see.

The contract of a kind `sweeper/losses/<kind>.py`:

    class Config(Settings)      kind: Literal["<kind>"], weight >= 0, own bounded fields; importing it needs no torch
    NEEDS: frozenset[str]       which of `INPUTS` the loss reads, beside the student's own outputs
    build(config, context)      an nn.Module that maps LossInputs to one scalar, not multiplied by the weight

Parameters of the module (projectors) are trained together with the student; buffers belong to its state.
`sweeper.losses._module` has what most kinds are made of.

Shapes in this package: B batch, K classes, D width of the student's embedding, T width of the teacher's, P width of a
projection, N training images, C components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = frozenset({"logits", "embedding", "labels", "index", "classifier"})


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What is known before the first batch.

    Args:
        student_dim: width D of the student's embedding.
        teacher_dim: width T of the teacher's embedding.
        num_classes: K.
        num_samples: images in the training pool, synthetic ones included; `index_B` is below it.
        teacher_embeddings: reads the pool's canonical-view embeddings, N x T; only losses that fit on them call it.
    """

    student_dim: int
    teacher_dim: int
    num_classes: int
    num_samples: int
    teacher_embeddings: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """One batch: the student's outputs and the teacher's cached ones for the same views.

    The teacher's tensors are there if the kind's NEEDS names them, in any float type (the cache holds fp16).
    A label may be read only where `hard_B`: elsewhere the image carries no label that the trial trusts.
    """

    student_logits_BK: Tensor
    student_embedding_BD: Tensor
    teacher_logits_BK: Tensor | None
    teacher_embedding_BT: Tensor | None
    labels_B: Tensor
    index_B: Tensor
    hard_B: Tensor
