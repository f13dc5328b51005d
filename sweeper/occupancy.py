"""How much of their time lanes train: the rest is what search, Tune and reporting cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Occupancy:
    """Follows the mailbox's events of a search.

    Args:
        workers: of a lane, each of which is charged for a training.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._trained = 0.0

    def follow(self, event: Mapping[str, Any]) -> None:
        """Take in the start or the end of a job; a job that a restarted lane takes up again has its first start."""
        job, lane = event.get("job"), event["lane"]
        if event["type"] == "start":
            self._first.setdefault(lane, event["time"])
            self._began[str(job)] = event["time"]
        elif event["type"] == "end" and job in self._began:
            span = event["time"] - self._began.pop(str(job))
            # a trial of an earlier session brings seconds along that it was trained then
            self._trained += min(span, event.get("train_seconds", span) / self.workers)
            self._last[lane] = event["time"]

    @property
    def share(self) -> float | None:
        """Seconds of training over those from each lane's first start to its last end; None before any end."""
        spans = [self._last[lane] - self._first[lane] for lane in self._last]
        return self._trained / sum(spans) if sum(spans) > 0 else None
