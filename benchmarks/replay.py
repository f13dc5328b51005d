"""Recorded learning curves, and lanes on a virtual clock that train from them.

A search needs of a training its accuracy and its device-seconds after each epoch, nothing else. Where these were
recorded once for a whole grid, a search of hours is replayed in seconds, and twenty of them tell one method from
another. What decides (samplers, schedulers, the study's journal) is the real thing; only lanes and clock are made up.

The rules of the replay, the same for every method:

- A free lane asks the method for a configuration at the very moment at which it is free, and gets the answer in no
  time: the clock shows device time, and what the driver needs is measured apart (`Timed`).
- Epochs end at their recorded seconds after the trial's start. Each end is reported; a method that says no to a report
  frees the lane there and then.
- *Device time* at a moment: what all lanes have trained until then, running trials included, and the shared artifacts
  (adapted teachers, their cached targets, synthetic images), charged when the first trial asks for them. An artifact is
  paid as far as it was used: a trial that wants five times as many synthetic images as the one before pays for what is
  missing. `sweeper run` builds all that a space can ask for before its search, which moves every method's curve by the
  same seconds; charged on first use, a search that leaves the generator alone need not pay for it. No lane waits for a
  build.
- The same configuration twice trains twice and finds the same: nothing is known to a method but what it was told.
- A trial that failed when it was recorded fails at the same epoch again.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeper.conditions import get_path, is_active
from sweeper.ledger import SHARED_STAGES, Cost
from sweeper.space import Space, nested

Floats = NDArray[np.float64]
Key = tuple[tuple[str, Any], ...]  # (dotted leaf, value) of what varies
ABSENT = "none"  # a leaf that is not there says the same as one that is switched off
STOPPED, COMPLETED, FAILED = "stopped", "completed", "failed"


@dataclass(frozen=True)
class Curve:
    """What one configuration did: accuracy on validation and device-seconds of training after each of its epochs.

    epochs: as many as were asked for; a trial that failed has fewer. shared: device-seconds of each shared artifact, by
    (stage, name), as far as this configuration uses it.
    """

    accuracy_E: Floats
    seconds_E: Floats
    epochs: int
    shared: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def shared_seconds(self) -> float:
        return sum(self.shared.values())

    @property
    def failed(self) -> bool:
        return len(self.accuracy_E) < self.epochs

    def cost(self, train_seconds: float) -> Cost:
        """What this configuration alone costs when it trains for so long."""
        parts = dict.fromkeys(SHARED_STAGES, 0.0)
        for (stage, _), seconds in self.shared.items():
            parts[stage] += seconds
        return Cost(train=train_seconds, **parts)


def key_of(space: Space, point: Mapping[str, Any]) -> Key:
    """A configuration as the values of the leaves that vary: equal for a drawn point and for the trial made of it."""
    values = {path: get_path(point, path, ABSENT) for path in space.domains}
    return tuple(
        (path, value)
        for path, value in values.items()
        if is_active(space.domains[path], values) and value not in (ABSENT, None)
    )


class Grid:
    """The recorded curves of a finite space, by `key_of`."""

    def __init__(self, space: Space, curves: Mapping[Key, Curve]) -> None:
        self.space, self.curves = space, curves

    @classmethod
    def read(cls, path: Path, space: Space) -> Grid:
        """From a file of `record_curves.pack`."""
        table = pq.read_table(path)
        epochs = int(table.schema.metadata[b"epochs"])
        found: dict[Key, Curve] = {}
        for row in table.to_pylist():
            values = {name: row[name] for name in space.domains if row[name] is not None}
            teacher = row.get("teacher") or ABSENT
            names = {"adapt": teacher, "targets": teacher, "synthetic": "images"}
            found[key_of(space, nested(values))] = Curve(
                np.asarray(row["accuracy"], dtype=float),
                np.asarray(row["seconds"], dtype=float),
                epochs,
                {(stage, names[stage]): row[stage] for stage in SHARED_STAGES if row[stage]},
            )
        return cls(space, found)

    def __call__(self, key: Key) -> Curve:
        return self.curves[key]

    @property
    def epochs(self) -> int:
        return max(curve.epochs for curve in self.curves.values())

    def points(self, anytime: bool) -> tuple[Floats, Floats]:
        """Accuracy and cost alone of every candidate: each epoch of each configuration, or only the last ones."""
        whole = [curve for curve in self.curves.values() if anytime or not curve.failed]
        cut = slice(None) if anytime else slice(-1, None)
        accuracy = np.concatenate([curve.accuracy_E[cut] for curve in whole])
        return accuracy, np.concatenate([curve.seconds_E[cut] + curve.shared_seconds for curve in whole])

    def device_seconds(self, share: float) -> float:
        """A share of the grid's training, and each shared artifact once, as far as any configuration used it."""
        paid: dict[tuple[str, str], float] = {}
        for curve in self.curves.values():
            for name, seconds in curve.shared.items():
                paid[name] = max(paid.get(name, 0.0), seconds)
        trained = sum(float(curve.seconds_E[-1]) for curve in self.curves.values() if len(curve.seconds_E))
        return share * trained + sum(paid.values())


class Report(NamedTuple):
    """An epoch's end as a method hears of it; `now` is the virtual clock in seconds."""

    name: str
    epoch: int
    epochs: int
    accuracy: float
    seconds: float
    shared_seconds: float
    now: float

    @property
    def projected_seconds(self) -> float:
        """What the whole trial will have cost alone."""
        return self.shared_seconds + self.seconds / self.epoch * self.epochs


class Method(Protocol):
    """A search, as lanes see it."""

    def propose(self, now: float) -> tuple[str, Key] | None:
        """The next trial's name and configuration; None when the method has had enough."""

    def report(self, report: Report) -> bool:
        """An epoch has ended: whether the trial goes on. The last one is reported too; its answer has no effect."""

    def end(self, report: Report, state: str) -> None:
        """A trial has ended with this as its last report: completed, stopped, or failed in the epoch after it."""


class Timed:
    """A method with a stopwatch: seconds of the driver in each call."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.seconds: dict[str, list[float]] = {"propose": [], "report": [], "end": []}

    def propose(self, now: float) -> tuple[str, Key] | None:
        return self._call("propose", now)  # type: ignore[no-any-return]

    def report(self, report: Report) -> bool:
        return bool(self._call("report", report))

    def end(self, report: Report, state: str) -> None:
        self._call("end", report, state)

    def total(self) -> float:
        return sum(sum(values) for values in self.seconds.values())

    def _call(self, name: str, *arguments: Any) -> Any:
        begun = time.perf_counter()
        answer = getattr(self.method, name)(*arguments)
        self.seconds[name].append(time.perf_counter() - begun)
        return answer


@dataclass(frozen=True)
class Log:
    """What a replayed search found, in the order of the clock: one entry an epoch of any trial.

    device_R: device-seconds of the whole search at that moment; accuracy_R and cost_R: what the student of this epoch
    reaches, and has cost alone, in device-seconds; complete_R: it is its trial's last. states: trials by how they
    ended; repeats: trials whose configuration had been tried before; clock_s: the virtual time of the last event.
    """

    device_R: Floats
    accuracy_R: Floats
    cost_R: Floats
    complete_R: NDArray[np.bool_]
    states: Mapping[str, int]
    repeats: int
    clock_s: float


@dataclass
class _Running:
    name: str
    key: Key
    curve: Curve
    begun: float
    epoch: int = 0

    def report(self, now: float) -> Report:
        at, curve = self.epoch - 1, self.curve
        seen = (float(curve.accuracy_E[at]), float(curve.seconds_E[at])) if self.epoch else (0.0, 0.0)
        return Report(self.name, self.epoch, curve.epochs, *seen, curve.shared_seconds, now)


class Lanes:
    """`num` lanes on a virtual clock."""

    def __init__(self, method: Method, curves: Callable[[Key], Curve], num: int) -> None:
        self.method, self.curves, self.num = method, curves, num
        self.events: list[tuple[float, int, _Running]] = []
        self.order = itertools.count()  # among events of the same moment
        self.started, self.repeats, self.now = 0, 0, 0.0
        self.paid: dict[tuple[str, str], float] = {}
        self.ended_s = 0.0  # device-seconds of trials that have ended
        self.running, self.begun_s = 0, 0.0  # how many run, and the sum of their starts
        self.states = {COMPLETED: 0, STOPPED: 0, FAILED: 0}
        self.tried: set[Key] = set()
        self.rows: list[tuple[float, float, float, bool]] = []

    def device_seconds(self) -> float:
        """Of training and of shared artifacts, up to now."""
        return self.ended_s + self.running * self.now - self.begun_s + sum(self.paid.values())

    def run(self, budget: float = float("inf"), trials: float = float("inf")) -> Log:
        """Until so many device-seconds are spent or trials have begun; what still runs then is lost with the budget."""
        for _ in range(self.num):
            self._start(trials)
        while self.events:
            at, _, running = heapq.heappop(self.events)
            if self.device_seconds() + self.running * (at - self.now) > budget:
                break
            self.now = at
            if self._epoch_end(running):
                self._start(trials)
        device, accuracy, cost, complete = np.array(self.rows).T if self.rows else np.zeros((4, 0))
        return Log(device, accuracy, cost, complete.astype(bool), dict(self.states), self.repeats, self.now)

    def _start(self, trials: float) -> None:
        """Give a free lane its next trial, if there is one."""
        proposal = self.method.propose(self.now) if self.started < trials else None
        if proposal is None:
            return
        name, key = proposal
        curve = self.curves(key)
        for artifact, seconds in curve.shared.items():
            self.paid[artifact] = max(self.paid.get(artifact, 0.0), seconds)
        self.started += 1
        self.repeats += key in self.tried
        self.tried.add(key)
        self.running += 1
        self.begun_s += self.now
        self._await(_Running(name, key, curve, self.now))

    def _await(self, running: _Running) -> None:
        """The next event of a trial: the end of its next epoch, or at once if it failed before that."""
        seconds_E = running.curve.seconds_E
        at = running.begun + float(seconds_E[running.epoch]) if running.epoch < len(seconds_E) else self.now
        heapq.heappush(self.events, (at, next(self.order), running))

    def _epoch_end(self, running: _Running) -> bool:
        """Whether the lane is free now."""
        if running.epoch == len(running.curve.seconds_E):
            return self._end(running, FAILED)
        running.epoch += 1
        report = running.report(self.now)
        is_last = running.epoch == running.curve.epochs
        self.rows.append((self.device_seconds(), report.accuracy, report.shared_seconds + report.seconds, is_last))
        goes_on = self.method.report(report)
        if is_last:
            return self._end(running, COMPLETED)
        if not goes_on:
            return self._end(running, STOPPED)
        self._await(running)
        return False

    def _end(self, running: _Running, state: str) -> bool:
        self.running -= 1
        self.begun_s -= running.begun
        self.ended_s += self.now - running.begun
        self.states[state] += 1
        self.method.end(running.report(self.now), state)
        return True
