"""How many bytes artifacts will have in the store, from their schemas; compression, which parquet adds, is left out."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sweeper.plan import Artifact, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

FLOAT16, FLOAT32 = 2, 4
VIEW_NUMBER = 4


def bytes_of(plan: Plan) -> Callable[[Artifact], int | None]:
    """Bytes of an artifact of the plan; None where its teacher's shapes are not to be had."""
    size = int(plan.config.dataset.image_size)  # type: ignore[attr-defined]
    num_classes = len(plan.index.class_names)

    @cache
    def shape(teacher: str) -> tuple[int, int] | None:
        """Width of its embedding, and its number of weights."""
        return _shape(plan.config.teachers[teacher], num_classes)

    def find(item: Artifact) -> int | None:
        if item.kind in ("images", "synthetic"):
            return item.units * size * size * 3
        found = shape(item.name)
        if found is None:
            return None
        width, num_weights = found
        classifier = num_classes * (width + 1) * FLOAT32
        if item.kind == "adapt":
            way = getattr(plan.config.teachers[item.name], "adapt", "none")
            return classifier + (num_weights * FLOAT32 if way == "fine_tune" else 0)
        columns = sum(num_classes if column == "logits" else width for column in item.spec["columns"])
        return item.units * (columns * FLOAT16 + plan.config.views.num_parameters * FLOAT32 + VIEW_NUMBER)

    return find


def _shape(teacher: Any, num_classes: int) -> tuple[int, int] | None:
    import torch

    from sweeper import timing

    try:
        with torch.device("meta"):
            model = timing.sketch(teacher, [str(i) for i in range(num_classes)])
    except Exception:  # each library has its own way to refuse; whether the model is right is asked where it is built
        return None
    return int(model.embedding_dim), sum(weight.numel() for weight in model.parameters())
