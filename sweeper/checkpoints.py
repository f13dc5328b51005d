"""When a trial's state is saved, and where: as often as costs little, in a slot that loads and saves bytes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

# A checkpoint may cost this share of the training time, and is not written more often than every few seconds.
CHECKPOINT_SHARE = 0.005
CHECKPOINT_INTERVAL_S = 5.0


class Slot(Protocol):
    """Where a trial's last checkpoint lies."""

    def load(self) -> bytes | None: ...

    def save(self, state: bytes) -> None: ...


class Checkpoints:
    """Saves a trial's state now and then.

    Args:
        rank: of this process among those that train the trial; only the first one saves.
    """

    def __init__(self, slot: Slot, rank: int) -> None:
        self.slot, self.rank = slot, rank
        self.saved_at, self.cost = time.perf_counter(), 0.0

    def after_epoch(self, epoch: int, epochs: int, state_bytes: Callable[[], bytes]) -> None:
        """Save if it is due; never after the last epoch, whose outcome is about to be told."""
        if self.rank or epoch >= epochs:
            return
        began = time.perf_counter()
        if began - self.saved_at >= max(CHECKPOINT_INTERVAL_S, self.cost / CHECKPOINT_SHARE):
            self.slot.save(state_bytes())
            self.saved_at = time.perf_counter()
            self.cost = self.saved_at - began


def state_of(state: bytes, device: torch.device) -> dict[str, Any]:
    """What `Trainer.state_bytes` wrote."""
    found: dict[str, Any] = torch.load(io.BytesIO(state), map_location=device, weights_only=True)
    return found
