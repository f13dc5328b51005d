"""How good the front had become by when: its hypervolume against the device time that the search had spent.

Accuracy a and cost c of a candidate are brought to [0, 1], with the chance level a0, the cost lo of the cheapest
candidate of the whole run, and hi, `pareto.REACH` times that of the dearest:

    y = (a - a0) / (1 - a0)        x = log(c / lo) / log(hi / lo)

A candidate covers [x, 1] x [0, y], and the hypervolume is the area that all candidates so far cover together: the share
of accuracy above chance that a budget buys, averaged over all budgets between lo and hi in logs. It is 1 for a front
whose cheapest point is perfect.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from sweeper import pareto
from sweeper.rows import Record

Point = tuple[float, float, float]


def hypervolume_curve(points: Sequence[Point], *, reference_accuracy: float, shared_seconds: float) -> list[Record]:
    """The hypervolume after each candidate that moved the front. O(n log n) but for the length of the front.

    Args:
        points: of each candidate (an epoch, or the end of a trial) the device-seconds that the search had spent on
            training when it was there, its accuracy on validation and its cost in device-hours. In any order; one
            without a finite accuracy or without a finite cost above 0 moves nothing, but its time counts.
        reference_accuracy: chance level a0, which is 1 / classes; below 1.
        shared_seconds: device-seconds of shared artifacts, spent before the first training.

    Returns:
        Records seconds (the shared ones included) and hypervolume, both rising, one a moment: the first at
        `shared_seconds` (with hypervolume 0, unless a candidate took no time), the last at the end of the search.
        Nothing without points.

    Raises:
        ValueError: `reference_accuracy` is not in [0, 1).
    """
    if not 0 <= reference_accuracy < 1:
        raise ValueError(f"reference_accuracy: {reference_accuracy!r}; must be at least 0 and below 1")
    if not points:
        return []
    costs = [hours for _, accuracy, hours in points if _is_candidate(accuracy, hours)]
    low = math.log(min(costs)) if costs else 0.0
    width = math.log(max(costs) * pareto.REACH) - low if costs else 1.0
    records: list[Record] = [{"seconds": shared_seconds, "hypervolume": 0.0}]
    front = _Front()
    for seconds, accuracy, hours in sorted(points, key=lambda point: point[0]):
        if _is_candidate(accuracy, hours):
            height = min(1.0, (accuracy - reference_accuracy) / (1 - reference_accuracy))
            front.add((math.log(hours) - low) / width, height)
        if min(1.0, front.area) > records[-1]["hypervolume"]:
            _append(records, shared_seconds + seconds, front.area)
    _append(records, shared_seconds + max(seconds for seconds, _, _ in points), front.area)
    return records


def _is_candidate(accuracy: float, hours: float) -> bool:
    return math.isfinite(accuracy) and 0 < hours < math.inf


def _append(records: list[Record], seconds: float, area: float) -> None:
    """One record a moment: the later of two at the same time stands."""
    if records[-1]["seconds"] == seconds:
        records.pop()
    records.append({"seconds": seconds, "hypervolume": min(1.0, area)})


class _Front:
    """A staircase in the unit square, rising to the right, and the area below it."""

    def __init__(self) -> None:
        self._xs: list[float] = []
        self._ys: list[float] = []
        self.area = 0.0

    def add(self, x: float, y: float) -> None:
        """Take a point in; those that it beats leave."""
        first = bisect_right(self._xs, x)
        below = self._ys[first - 1] if first else 0.0
        if y <= below:
            return
        last = bisect_right(self._ys, y, lo=first)
        start = bisect_left(self._xs, x)
        end = self._xs[last] if last < len(self._xs) else 1.0
        edges = [x, *self._xs[first:last], end]
        heights = [below, *self._ys[first:last]]
        steps = zip(itertools.pairwise(edges), heights, strict=True)
        self.area += math.fsum((b - a) * (y - height) for (a, b), height in steps)
        self._xs[start:last] = [x]
        self._ys[start:last] = [y]
