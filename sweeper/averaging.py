"""The average of a student's weights over its last steps, which is worth more than the weights of any one of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sweeper.student import Student


class WeightAverage(nn.Module):
    """Exponential moving average of weights and batch statistics (Polyak and Juditsky 1992).

    After n updates the decay is min(decay, (1 + n) / (10 + n)): at first the average reaches over the last tenth of the
    steps that were made, so that it is good at every epoch of a short training too.

    Args:
        student: on its device; the average begins with the weights that it has at the first `update`.
        decay: in (0, 1).
    """

    num_updates: Tensor

    def __init__(self, student: Student, decay: float) -> None:
        super().__init__()
        self.student: Any = deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self._count = 0  # beside the buffer, so that no step waits for the device

    @torch.no_grad()
    def update(self, student: Student) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self._count) / (10 + self._count)) if self._count else 0.0
        self._count += 1
        self.num_updates.fill_(self._count)
        ours, theirs = _tensors(self.student), _tensors(student)
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - decay)
        for a, b in zip(ours, theirs, strict=True):
            if not a.is_floating_point():  # counters of batches
                a.copy_(b)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As any module's; the count comes with it."""
        found = super().load_state_dict(*args, **kwargs)
        self._count = int(self.num_updates)
        return found


def _tensors(module: nn.Module) -> Sequence[Tensor]:
    return [*module.parameters(), *module.buffers()]
