"""Random batches for every loss; the student is narrower than the teacher unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sweeper.losses import LossContext, LossInputs

NUM_CLASSES, STUDENT_DIM, TEACHER_DIM, NUM_SAMPLES = 5, 6, 9, 200
torch.set_num_threads(1)


def make_inputs(batch: int = 8, seed: int = 0, student_dim: int = STUDENT_DIM, **changes: Any) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(batch, width, generator=generator)

    tensors = {
        "student_logits_BK": (3 * draw(NUM_CLASSES)).requires_grad_(),
        "student_embedding_BD": draw(student_dim).requires_grad_(),
        "teacher_logits_BK": 3 * draw(NUM_CLASSES),
        "teacher_embedding_BT": 2 * draw(TEACHER_DIM) + 1,
        "labels_B": torch.randint(NUM_CLASSES, (batch,), generator=generator),
        "index_B": torch.randperm(NUM_SAMPLES, generator=generator)[:batch],
        "hard_B": torch.arange(batch) % 2 == 0,
    }
    return LossInputs(**{**tensors, **changes})


def make_context(student_dim: int = STUDENT_DIM, pool: torch.Tensor | None = None) -> LossContext:
    if pool is None:
        scales = torch.logspace(0.5, -0.5, TEACHER_DIM)
        pool = torch.randn(NUM_SAMPLES, TEACHER_DIM, generator=torch.Generator().manual_seed(99)) * scales + 1
    embeddings = pool
    return LossContext(
        student_dim=student_dim,
        teacher_dim=embeddings.shape[1],
        num_classes=NUM_CLASSES,
        num_samples=len(embeddings),
        teacher_embeddings=lambda: embeddings,
    )


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
