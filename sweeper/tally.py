"""The score of a running search: how many trials ended and how, the best so far, and the time left.

Kept apart from what shows it, with the clock as an argument, so that the estimate can be tested without waiting.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from sweeper.status import Cause, Trials, shown
from sweeper.tables import duration

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+([.,]\d+)*", re.IGNORECASE)
MOST_CAUSES = 5
UNKNOWN = "for no reason that it gave"


class Tally:
    """Counts trials; `total` is the budget in trials, where there is one."""

    def __init__(self, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        self.total = total
        self.counts = {"completed": 0, "stopped": 0, "failed": 0}
        self.best: tuple[float, int] | None = None
        self._causes: dict[str, tuple[str, int]] = {}  # of failures: what the first of a kind said, and their number
        self._fraction: float | None = None
        self._clock = clock
        self._base = (clock(), 0, 0.0)  # when this session began, and the trials and the share of the budget by then

    def count(self, trial: int, state: str, accuracy: float | None, error: str | None = None) -> None:
        """A trial ended; of equal accuracies the earlier one stays the best. Failures of one kind differ in numbers."""
        self.counts[state] += 1
        self.done += 1
        if state == "failed":
            said = shown(next(iter((error or "").strip().splitlines()), "")) or UNKNOWN
            first, count = self._causes.get(kind := _NUMBER.sub("#", said), (said, 0))
            self._causes[kind] = first, count + 1
        if accuracy is None or not math.isfinite(accuracy) or state == "failed":
            return
        if self.best is None or accuracy > self.best[0]:
            self.best = (accuracy, trial)

    def rebase(self) -> None:
        """What was counted so far is an earlier session's: no part of this one's pace."""
        self._base = (self._clock(), self.done, self._fraction or 0.0)

    def use(self, fraction: float | None) -> None:
        """The share in [0, 1] that is used of a budget which is not counted in trials; None without one."""
        if self._fraction is None:
            self._base = (*self._base[:2], fraction or 0.0)
        self._fraction = fraction

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

    def trials(self) -> Trials:
        """The score as a record, with the most frequent causes."""
        best, trial = self.best or (None, None)
        causes = sorted(self._causes.values(), key=lambda cause: -cause[1])[:MOST_CAUSES]
        return Trials(
            done=self.done,
            total=self.total,
            stopped=self.counts["stopped"],
            failed=self.counts["failed"],
            best=best,
            best_trial=trial,
            causes=tuple(Cause(text=text, count=count) for text, count in causes),
        )

    def summary(self) -> str:
        """`12/24 trials, 3 stopped, 0 failed, best 0.947 (trial 7), 2 min 10 s left`."""
        left = self.seconds_left()
        return score(self.trials()) + (f", {duration(left)} left" if left else "")


def score(trials: Trials) -> str:
    """`12/24 trials, 3 stopped, 0 failed, best 0.947 (trial 7)`."""
    position = f"{trials.done}/{trials.total}" if trials.total is not None else str(trials.done)
    said = f"{position} trials, {trials.stopped} stopped, {trials.failed} failed"
    return said if trials.best is None else f"{said}, best {trials.best:.3f} (trial {trials.best_trial})"
