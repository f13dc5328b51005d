"""The learning rate of each step, as a factor of the recipe's."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, num_steps: int, warmup: float, schedule: str) -> float:
    """Linear warm-up over a share `warmup` of the steps, then a half cosine to 0, or constant."""
    warm_steps = warmup * num_steps
    if step < warm_steps:
        return (step + 1) / (warm_steps + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / max(1.0, num_steps - warm_steps)))
