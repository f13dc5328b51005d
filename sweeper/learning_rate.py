"""The learning rate of each step, as a factor of the recipe's."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "wsd"]
COOLDOWN = 0.2  # share of the steps in which `wsd` goes down


def learning_rate_factor(step: int, num_steps: int, warmup: float, schedule: Schedule) -> float:
    """Linear warm-up over a share `warmup` of the steps, then as the schedule says.

    `cosine`: half a cosine to 0. `constant`: 1. `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395): 1,
    and at last a straight line to 0: until then nothing depends on where the training will end.
    """
    warm_steps = warmup * num_steps
    if step < warm_steps:
        return (step + 1) / (warm_steps + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        cool_steps = max(1.0, min(COOLDOWN * num_steps, num_steps - warm_steps))
        return min(1.0, (num_steps - step) / cool_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / max(1.0, num_steps - warm_steps)))
