"""The score of a running search: how many trials ended and how, the best so far, and the time left.

Kept apart from what shows it, with the clock as an argument, so that the estimate can be tested without waiting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sweeper.tables import duration


class Tally:
    """Counts trials; `total` is the budget in trials, where there is one."""

    def __init__(self, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.total = total
        self.counts = {"completed": 0, "stopped": 0, "failed": 0}
        self.best: tuple[float, int] | None = None
        self._fraction: float | None = None
        self._clock = clock
        self._base = (
            clock(),
            0,
            0.0,
        )  # when this session began, and the trials and the share of the budget used by then

    def count(self, trial: int, state: str, accuracy: float | None) -> None:
        """A trial ended; of equal accuracies the earlier one stays the best."""
        self.counts[state] += 1
        self.done += 1
        if accuracy is None or not math.isfinite(accuracy) or state == "failed":
            return
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, trial)

    def rebase(self) -> None:
        """What was counted so far is an earlier session's: no part of this one's pace."""
        self._base = (self._clock(), self.done, self._fraction or 0.0)

    def progress(self, done: int, total: int | None, fraction: float | None = None) -> None:
        """Trials done out of `total`, counted ones included; `fraction` in [0, 1]: the used share of another budget."""
        begun = any(self.counts.values())
        self.done, self.total, self._fraction = done, total, fraction
        if not begun:
            self.rebase()

    def seconds_left(self) -> float | None:
        """At this session's pace, to the budget that is reached first; None before anything was done."""
        begun, base_done, base_fraction = self._base
        ratios = []
        if self.total is not None and self.done > base_done:
            ratios.append((self.total - self.done) / (self.done - base_done))
        if self._fraction is not None and self._fraction > base_fraction:
            ratios.append((1 - self._fraction) / (self._fraction - base_fraction))
        return max(0.0, min(ratios)) * (self._clock() - begun) if ratios else None

    def position(self) -> str:
        """`12/24`, or `12` without a budget in trials."""
        return f"{self.done}/{self.total}" if self.total is not None else str(self.done)

    def summary(self) -> str:
        """`12/24 trials, 3 stopped, 0 failed, best 0.947 (trial 7), 2 min 10 s left`."""
        parts = [f"{self.position()} trials", f"{self.counts['stopped']} stopped", f"{self.counts['failed']} failed"]
        if self.best:
            parts.append(f"best {self.best[0]:.3f} (trial {self.best[1]})")
        left = self.seconds_left()
        return ", ".join([*parts, f"{duration(left)} left"] if left else parts)
