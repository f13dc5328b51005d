"""The counter of a stage while it works: how much is done, how fast, how long it still takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from sweeper import status

WINDOW_S = 30.0  # in which a rate is measured
Clock = Callable[[], float]


class Stage:
    """A stage's counter: what has been done of `total` where that is known, in how many bytes and device-seconds.

    `found` of what is done were there before: they have no part in a rate.
    """

    def __init__(self, kind: str, total: int | None, unit: str, clock: Clock = time.monotonic) -> None:
        self.kind, self.total, self.unit, self._clock = kind, total, unit, clock
        self.done = self.bytes = self.found = 0
        self.state = status.WORKING
        self._began = clock()
        self._ended: float | None = None
        self._seen = deque([(self._began, 0)])
        self.spent: list[tuple[float, str]] = []

    def advance(self, count: int = 1, size: int = 0, /, *, is_new: bool = True) -> None:
        """So much more is done, and so many bytes are written."""
        self.bytes += size
        self.update(self.done + count)
        if not is_new:
            self.found += count
            self.rebase()

    def update(self, done: int, total: int | None = None) -> None:
        self.done, self.total = done, self.total if total is None else total
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW_S:
            self._seen.popleft()

    def rebase(self) -> None:
        """The work begins only now: what came before has no part in the rate of late."""
        self._seen = deque([(self._clock(), self.done)])

    def spend(self, seconds: float, device: str) -> None:
        """So many device-seconds were measured."""
        self.spent.append((seconds, device))

    def close(self, state: str) -> None:
        self._ended, self.state = self._clock(), state

    @property
    def seconds(self) -> float:
        return (self._clock() if self._ended is None else self._ended) - self._began

    @property
    def rate(self) -> float | None:
        """Units a second: of late, or of all its time once it has ended; None before anything was done."""
        since, done = (self._began, self.found) if self._ended is not None else self._seen[0]
        until = self._clock() if self._ended is None else self._ended
        return (self.done - done) / (until - since) if self.done > done and until > since else None

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None where it has ended or nobody knows."""
        rate = self.rate
        if self._ended is not None or self.total is None or rate is None:
            return None
        return max(0.0, self.total - self.done) / rate
