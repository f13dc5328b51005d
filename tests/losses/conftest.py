"""Random batches for every loss; the student is narrower than the teacher unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sweeper.losses import LossContext, LossInputs, MapShape, Pool

NUM_CLASSES, STUDENT_DIM, TEACHER_DIM, NUM_SAMPLES = 5, 6, 9, 200
STUDENT_MAPS = (MapShape(4, 8, 8), MapShape(5, 4, 4), MapShape(6, 2, 2))
TEACHER_MAPS = (MapShape(3, 6, 6), MapShape(7, 6, 6), MapShape(9, 3, 3))
PIXELS = 6
torch.set_num_threads(1)


def make_inputs(batch: int = 8, seed: int = 0, student_dim: int = STUDENT_DIM, **changes: Any) -> LossInputs:
    """Every field is there; the student's logits, embeddings and maps are leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    tensors = {
        "student_logits_BK": (3 * draw(NUM_CLASSES)).requires_grad_(),
        "student_embedding_BD": draw(student_dim).requires_grad_(),
        "teacher_logits_BK": 3 * draw(NUM_CLASSES),
        "teacher_embedding_BT": 2 * draw(TEACHER_DIM) + 1,
        "labels_B": torch.randint(NUM_CLASSES, (batch,), generator=generator),
        "index_B": torch.randperm(NUM_SAMPLES, generator=generator)[:batch],
        "hard_B": torch.arange(batch) % 2 == 0,
        "student_pre_embedding_BD": draw(student_dim).requires_grad_(),
        "teacher_pre_embedding_BT": 2 * draw(TEACHER_DIM) + 1,
        "student_maps": tuple(draw(m.channels, m.height, m.width).requires_grad_() for m in STUDENT_MAPS),
        "teacher_maps": tuple(2 * draw(m.channels, m.height, m.width) + 0.5 for m in TEACHER_MAPS),
        "images_BCHW": torch.rand(batch, 3, PIXELS, PIXELS, generator=generator).requires_grad_(),
        "teacher_jacobian_BCHW": draw(3, PIXELS, PIXELS),
    }
    return LossInputs(**{**tensors, **changes})


def make_pool(embedding_NT: torch.Tensor | None = None) -> Pool:
    """Targets of `NUM_SAMPLES` images, or as many as the given embeddings (which also stand for the pre-activation)."""
    generator = torch.Generator().manual_seed(99)
    if embedding_NT is None:
        scales = torch.logspace(0.5, -0.5, TEACHER_DIM)
        embedding_NT = torch.randn(NUM_SAMPLES, TEACHER_DIM, generator=generator) * scales + 1
    num_rows = len(embedding_NT)
    return Pool(
        logits_NK=3 * torch.randn(num_rows, NUM_CLASSES, generator=generator),
        embedding_NT=embedding_NT,
        pre_embedding_NT=embedding_NT,
        labels_N=torch.randint(NUM_CLASSES, (num_rows,), generator=generator),
        hard_N=torch.arange(num_rows) % 4 != 0,
    )


def make_context(student_dim: int = STUDENT_DIM, pool: torch.Tensor | None = None, **changes: Any) -> LossContext:
    drawn = make_pool(pool)
    width = changes.get("teacher_dim", TEACHER_DIM if pool is None else pool.shape[1])
    generator = torch.Generator().manual_seed(7)
    classifier = (torch.randn(NUM_CLASSES, width, generator=generator), torch.randn(NUM_CLASSES, generator=generator))
    known = {
        "student_dim": student_dim,
        "teacher_dim": width,
        "num_classes": NUM_CLASSES,
        "num_samples": len(drawn.labels_N),
        "pool": lambda: drawn,
        "classifier": lambda: classifier,
        "student_maps": STUDENT_MAPS,
        "teacher_maps": TEACHER_MAPS,
    }
    return LossContext(**{**known, **changes})


@pytest.fixture
def inputs() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture
def context() -> Callable[..., LossContext]:
    return make_context


def _central_differences(function: Callable[[Any], float], point: Any, step: float = 1e-6) -> Any:
    import numpy as np

    gradient = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        moved = np.zeros_like(point)
        moved[index] = step
        gradient[index] = (function(point + moved) - function(point - moved)) / (2 * step)
    return gradient


@pytest.fixture
def central_differences() -> Callable[..., Any]:
    """Gradient of a float64 numpy function, for comparison with autograd."""
    return _central_differences
