"""Keeps what a run does now, for whoever shows it: stages, lanes, the front, failures, and what was spent.

A run tells it what happens, from any of its threads; `status` is a picture of this moment.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple

from sweeper import status
from sweeper.stage import Clock, Stage
from sweeper.status import LaneStatus, Point, StageStatus, Status, shown
from sweeper.tally import Tally

SECONDS_PER_HOUR = 3600.0
MOST_LINES = 20
SEARCH = "search"
Price = Callable[[str], float | None]
Spent = tuple[str, str]  # kind of stage and device


class Expected(NamedTuple):
    """What a stage was forecast to take: device-seconds, and seconds on the clock."""

    seconds: float
    wall_s: float


def _unknown(device: str) -> float | None:
    return None


class _Lane(NamedTuple):
    said: LaneStatus
    seconds: float  # of its training so far, not yet spent


class Monitor:
    """What a run does now. A stage's first word is its kind: all of a kind are one line."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._began, self._lock = clock, clock(), threading.RLock()
        self._label, self._device = "", "cpu"
        self._ended = (status.RUNNING, "")
        self._expected: Mapping[str, Expected] = {}
        self._there: Set[str] = frozenset()
        self._price: Price = _unknown
        self._stages: dict[str, list[Stage]] = {}
        self._spent: defaultdict[Spent, float] = defaultdict(float)
        self._lanes: dict[int, _Lane] = {}
        self._num_lanes = 0
        self._tally: Tally | None = None
        self._points: tuple[Point, ...] = ()
        self._hypervolume: float | None = None
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._num_lines = 0

    def expect(
        self,
        label: str,
        expected: Mapping[str, Expected],
        device: str,
        *,
        there: Set[str] = frozenset(),
        price: Price = _unknown,
    ) -> None:
        """What the run should take.

        Args:
            label: `name/run id`.
            expected: by kind of stage, from the run's beginning.
            device: of its trainings.
            there: kinds for which nothing is left to do.
            price: dollars an hour of a device; None where nobody said.
        """
        with self._lock:
            self._label, self._expected, self._device = shown(label), dict(expected), device
            self._there, self._price = there, price

    def end(self, state: str, reason: str = "") -> None:
        """The run has ended, as `Status.state` has it."""
        with self._lock:
            self._ended = state, shown(reason)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
        """A stage while the block runs."""
        counter = Stage(shown(name).partition(" ")[0], total, unit, self._clock)
        with self._lock:
            self._stages.setdefault(counter.kind, []).append(counter)
        state = status.LEFT
        try:
            yield counter
            state = status.DONE
        finally:
            with self._lock:
                counter.close(state)
                self._lanes.clear()
                self._num_lanes = 0

    @contextmanager
    def search(self, total: int | None, device: str) -> Iterator[None]:
        """The search on such devices while the block runs, with a budget of `total` trials, if that is its budget."""
        with self._lock:
            self._tally, self._device = Tally(total, self._clock), device
        with self.stage(SEARCH, total, "trials"):
            yield

    def earlier(self, trials: Iterable[tuple[int, str, float | None, str | None]]) -> None:
        """Trials (number, state, accuracy, error) that an earlier session finished: no part of this one's pace."""
        with self._lock:
            tally = self._counting()
            for trial in trials:
                tally.count(*trial)
            tally.rebase()

    def rebase(self) -> None:
        """The first trial begins only now: lanes that had to come up have no part in the pace."""
        with self._lock:
            self._counting().rebase()
            self._stages[SEARCH][-1].rebase()

    def trial(self, number: int, state: str, accuracy: float | None, error: str | None = None) -> str:
        """A trial ended; returns its place among all."""
        with self._lock:
            self._counting().count(number, state, accuracy, error)
            self._stages[SEARCH][-1].advance()
            return self._counting().position()

    def use(self, fraction: float | None) -> None:
        """The used share of a budget that is not counted in trials."""
        with self._lock:
            self._counting().use(fraction)

    def summary(self) -> str:
        """The score of the search."""
        with self._lock:
            return self._counting().summary()

    def _counting(self) -> Tally:
        assert self._tally is not None, "trials end within a search"
        return self._tally

    def spend(self, kind: str, seconds: float, device: str) -> None:
        """So many device-seconds went into a kind of stage, in whatever session of the run."""
        with self._lock:
            self._spent[kind, device] += seconds

    def lanes(self, count: int) -> None:
        """How many there are; more may join."""
        with self._lock:
            self._num_lanes = count

    def lane(self, said: LaneStatus, seconds: float = 0.0) -> None:
        """What a lane does now; `seconds`: of its training, device-seconds so far that `spend` has not been told."""
        with self._lock:
            self._lanes[said.lane] = _Lane(said, seconds)

    def front(self, points: Sequence[Point], hypervolume: float) -> None:
        """What the search has found by now."""
        with self._lock:
            self._points, self._hypervolume = tuple(points), hypervolume

    def say(self, line: str) -> None:
        """A line that was printed."""
        with self._lock:
            self._lines.append(shown(line))
            self._num_lines += 1

    def status(self) -> Status:
        """A picture of this moment."""
        with self._lock:
            spent = self._all_spent()
            ahead = (kind for kind, one in self._expected.items() if any(one) and kind not in self._there)
            stages = tuple(self._stage(kind, spent) for kind in dict.fromkeys([*self._stages, *ahead]))
            forecast = math.fsum(expected.seconds for expected in self._expected.values())
            state, reason = self._ended
            return Status(
                label=self._label,
                state=state,
                reason=reason,
                device=self._device,
                seconds=self._clock() - self._began,
                seconds_left=self._seconds_left(stages),
                spent_s=math.fsum(spent.values()),
                forecast_s=forecast if self._expected else None,
                dollars=self._dollars(spent),
                forecast_dollars=self._dollars({("", self._device): forecast}) if self._expected else None,
                stages=stages,
                lanes=self._all_lanes(),
                trials=self._tally.trials() if self._tally is not None else None,
                points=self._points,
                hypervolume=self._hypervolume,
                lines=tuple(self._lines),
                num_lines=self._num_lines,
            )

    def _stage(self, kind: str, spent: Mapping[Spent, float]) -> StageStatus:
        opened, expected = self._stages.get(kind, []), self._expected.get(kind)
        spent_s = math.fsum(seconds for (of, _), seconds in spent.items() if of == kind)
        forecast_s = expected.seconds if expected is not None else None
        if not opened:
            return StageStatus(kind=kind, state=status.WAITING, spent_s=spent_s, forecast_s=forecast_s)
        last, totals = opened[-1], [one.total for one in opened]
        done, total, left = sum(one.done for one in opened), None, last.seconds_left
        if None not in totals:
            total = sum(filter(None, totals))
        if kind == SEARCH and self._tally is not None:
            done, total = self._tally.done, self._tally.total
            left = self._tally.seconds_left() if last.state == status.WORKING else None
        return StageStatus(
            kind=kind,
            state=last.state,
            unit=last.unit,
            done=done,
            total=total,
            rate=last.rate,
            bytes=sum(one.bytes for one in opened),
            seconds=math.fsum(one.seconds for one in opened),
            seconds_left=left,
            spent_s=spent_s,
            forecast_s=forecast_s,
        )

    def _all_spent(self) -> dict[Spent, float]:
        """With what is not settled yet: charges of stages, and what the lanes train now."""
        spent = dict(self._spent)
        opened = [one for stages in self._stages.values() for one in stages]
        working = next((one.kind for one in opened if one.state == status.WORKING), "")
        charges = [(one.kind, device, seconds) for one in opened for seconds, device in one.spent]
        charges += [(working, self._device, lane.seconds) for lane in self._lanes.values()]
        for kind, device, seconds in charges:
            spent[kind, device] = spent.get((kind, device), 0.0) + seconds
        return spent

    def _dollars(self, spent: Mapping[Spent, float]) -> float | None:
        """None where a device has no price."""
        prices = {device: self._price(device) for device in {self._device, *(of for (_, of), s in spent.items() if s)}}
        if None in prices.values():
            return None
        return math.fsum((prices[device] or 0.0) * s / SECONDS_PER_HOUR for (_, device), s in spent.items() if s)

    def _seconds_left(self, stages: Sequence[StageStatus]) -> float | None:
        """Of the stage that works, and what was forecast for those that follow.

        None without a forecast, and where a stage without a rate takes longer than was forecast.
        """
        if not self._expected or self._ended[0] != status.RUNNING:
            return None
        left = 0.0
        for one in stages:
            wall_s = self._expected[one.kind].wall_s if one.kind in self._expected else 0.0
            if one.state == status.WORKING and one.seconds_left is None and one.seconds > wall_s > 0:
                return None
            if one.state == status.WAITING:
                left += wall_s
            elif one.state == status.WORKING:
                left += max(0.0, wall_s - one.seconds) if one.seconds_left is None else one.seconds_left
        return left

    def _all_lanes(self) -> tuple[LaneStatus, ...]:
        count = max([self._num_lanes, *(number + 1 for number in self._lanes)])
        lanes = (self._lanes.get(number) for number in range(count))
        return tuple(LaneStatus(lane=n) if lane is None else lane.said for n, lane in enumerate(lanes))
