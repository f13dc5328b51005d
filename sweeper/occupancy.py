"""How much of their time lanes train: the rest is what search, Tune and reporting cost."""

from __future__ import annotations

import math
from collections import defaultdict
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
        self._trained: defaultdict[str, float] = defaultdict(float)
        self._now: dict[str, tuple[float, float]] = {}  # of a lane: when it was heard of, and its job's seconds by then

    def follow(self, event: Mapping[str, Any]) -> None:
        """Take in the start, a report or the end of a job; one that is taken up again has its lane's first start."""
        job, lane = str(event.get("job")), event["lane"]
        if event["type"] == "start":
            self._first.setdefault(lane, event["time"])
            self._began[job] = event["time"]
            self._now[lane] = event["time"], 0.0
        elif event["type"] in ("report", "end") and job in self._began:
            span = event["time"] - self._began[job]
            # a trial of an earlier session brings seconds along that it was trained then
            trained = min(span, event.get("train_seconds", span) / self.workers)
            self._now[lane] = event["time"], trained
            if event["type"] == "end":
                del self._began[job]
                self._trained[lane] += trained
                self._last[lane], self._now[lane] = event["time"], (event["time"], 0.0)

    def of(self, lane: str) -> float | None:
        """The share of a lane's time since its first start that it has trained; None before there is any."""
        if lane not in self._now or lane not in self._first:
            return None
        until, running = self._now[lane]
        span = until - self._first[lane]
        return (self._trained[lane] + running) / span if span > 0 else None

    @property
    def share(self) -> float | None:
        """Seconds of training over those from each lane's first start to its last end; None before any end."""
        spans = [self._last[lane] - self._first[lane] for lane in self._last]
        return math.fsum(self._trained.values()) / sum(spans) if sum(spans) > 0 else None
