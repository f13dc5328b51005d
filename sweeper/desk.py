"""What the search decides, without Ray: which trial comes next, what a report means, how a trial ended, when to stop.

`search` puts it behind Ray Tune; `benchmarks/search.py` replays recorded trainings through the same object.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sweeper import pareto
from sweeper.config import SearchConfig
from sweeper.ledger import SECONDS_PER_HOUR, Cost
from sweeper.outcome import told
from sweeper.study import Study, clock_seconds, spent_seconds
from sweeper.trial import TrialConfig

# `min_gain` looks at so many trials: a front that stands still for fewer may only be between two finds.
GAIN_TRIALS = 20
# epoch, accuracy, loss, device-seconds so far
CurveRow = list[float]


def job_id(number: int) -> str:
    """The mailbox's name for trial `number` of the search."""
    return f"trial-{number:05d}"


@dataclass(frozen=True)
class Open:
    """A trial that was proposed and has not ended. `shared_seconds`: of the artifacts that it uses."""

    number: int
    config: TrialConfig
    shared_seconds: float


class Desk:
    """The searcher of a run, over the study that is its memory.

    Args:
        cost: what a resolved trial with so many seconds of training costs alone.
        shared_seconds: device-seconds of all shared artifacts, counted into a budget of GPU-hours.
        clock: seconds, for a budget on the clock.
    """

    def __init__(
        self,
        study: Study,
        config: SearchConfig,
        cost: Callable[[TrialConfig, float], Cost],
        shared_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book, self.config, self.cost, self.shared_seconds, self.clock = study, config, cost, shared_seconds, clock
        self.waiting = study.interrupted()
        earlier = study.trials()
        self.asked = len(earlier)
        self.began = clock() - clock_seconds(earlier)
        self.spent = spent_seconds(earlier)
        self.open: dict[str, Open] = {}
        self.curves: dict[str, list[CurveRow]] = {}
        self.points: list[tuple[float, float]] = []  # accuracy and GPU-hours, as trials ended
        self.ends: list[int] = []  # how many points there were after each trial
        self.best = 0.0
        self._gain = (-1, 1.0)
        for trial in earlier:
            self._count(trial.user_attrs["outcome"])

    def shared(self, config: TrialConfig) -> float:
        """Device-seconds of the artifacts that a trial uses."""
        return self.cost(config, 0.0).total

    @property
    def why_ended(self) -> str:
        """The budget that is spent, in a few words; empty while there is something left of each, or to be taken up."""
        if self.waiting:
            return ""
        if self.config.trials is not None and self.asked >= self.config.trials:
            return f"{self.config.trials} trials"
        return self.why_at_once

    @property
    def why_at_once(self) -> str:
        """As `why_ended`, of those ends for which running trials are not waited for."""
        config = self.config
        if config.gpu_hours is not None:
            spent = self._spent_now + self.shared_seconds
            if spent / SECONDS_PER_HOUR >= config.gpu_hours:
                return f"{config.gpu_hours:g} GPU-hours"
        if config.wall_hours is not None and (self.clock() - self.began) / SECONDS_PER_HOUR >= config.wall_hours:
            return f"{config.wall_hours:g} hours on the clock"
        if config.target is not None and self.best >= config.target:
            return f"the target, accuracy {config.target:g}"
        if config.min_gain is not None and self.expected_gain() < config.min_gain:
            return f"an expected gain below {config.min_gain:g} a trial"
        return ""

    @property
    def used(self) -> float | None:
        """Of the budgets in GPU-hours and on the clock, the share in [0, 1] of the one that is used most."""
        config, shares = self.config, list[float]()
        if config.gpu_hours is not None:
            shares.append((self._spent_now + self.shared_seconds) / SECONDS_PER_HOUR / config.gpu_hours)
        if config.wall_hours is not None:
            shares.append((self.clock() - self.began) / SECONDS_PER_HOUR / config.wall_hours)
        return min(1.0, max(shares)) if shares else None

    @property
    def _spent_now(self) -> float:
        """Device-seconds of training, of those that run as far as they have reported."""
        return self.spent + math.fsum(rows[-1][3] for rows in self.curves.values() if rows)

    @property
    def at_most(self) -> int:
        """How many trials could run at a time from now on."""
        left = 10**9 if self.config.trials is None else max(0, self.config.trials - self.asked)
        return len(self.open) + (0 if self.why_ended else len(self.waiting) + left)

    def propose(self) -> tuple[str, TrialConfig] | None:
        """The next trial's job name and configuration, interrupted ones first; None once a budget is spent."""
        if self.why_ended:
            return None
        number, config = self.waiting.pop(0) if self.waiting else self.book.ask()
        self.asked += 1
        name = job_id(number)
        self.open[name] = Open(number, config, self.shared(config))
        self.curves[name] = []
        return name, config

    def report(self, name: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an epoch report; returns what a scheduler hears of it."""
        row = [event["epoch"], event["accuracy_val"], event["loss"], event["train_seconds"]]
        earlier = [r for r in self.curves[name] if r[0] < row[0]]  # a restarted worker repeats epochs
        self.curves[name] = [*earlier, row]
        confirmed = [r[1] for r in self.curves[name][-2:]]
        if self.config.front == "anytime" and len(confirmed) == 2 and all(map(math.isfinite, confirmed)):
            self.best = max(self.best, min(confirmed))
        return told(event, self.open[name].shared_seconds)

    def end(self, name: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """Write down how a trial ended and tell the sampler.

        Returns:
            trial, config, cost and accuracy_val; empty for a trial that never began.
        """
        ended = self.open.pop(name)
        number, config = ended.number, ended.config
        seen = self.curves.pop(name)
        if event["state"] == "withdrawn":
            self.book.withdraw(number)
            self.asked -= 1
            return {}
        curve = [list(row) for row in event.get("curve") or seen]  # one that an earlier driver began knows more
        seconds = event.get("train_seconds", curve[-1][3] if curve else 0.0)
        cost = self.cost(config, seconds)
        outcome = {
            "state": event["state"],
            "error": event.get("error"),
            "epochs": len(curve) and int(curve[-1][0]),
            "num_epochs": config.train.epochs,
            "accuracy_val": curve[-1][1] if curve else None,
            "cost": asdict(cost),
            "pretrain_seconds": event.get("pretrain_seconds", 0.0),
            "params": event.get("params", 0),
            "parts": event.get("parts", 1),
            "device": event.get("device"),
            "curve": curve,
            "clock_seconds": self.clock() - self.began,
        }
        self.book.record(number, outcome)
        self.spent += seconds
        self._count(outcome)
        return {"trial": number, "config": config, "cost": cost, "accuracy_val": outcome["accuracy_val"]}

    def expected_gain(self) -> float:
        """Share of the hypervolume that the next trial will add, by what the last `GAIN_TRIALS` added; 1 before those.

        Hypervolume of accuracy above 0 and the log of the cost below `pareto.REACH` times the dearest point.
        """
        settled = len(self.ends)
        if settled < GAIN_TRIALS + max(1, self.config.startup):
            return 1.0
        if self._gain[0] != settled:  # asked at every report, and changes with a trial's end
            self._gain = settled, self._measured_gain(settled)
        return self._gain[1]

    def _measured_gain(self, settled: int) -> float:
        now = np.array([(accuracy, math.log(hours)) for accuracy, hours in self.points])
        reference = (0.0, float(now[:, 1].max()) + math.log(pareto.REACH))
        before = now[: self.ends[settled - 1 - GAIN_TRIALS]]
        whole = pareto.hypervolume(now, reference, (True, False))
        past = pareto.hypervolume(before, reference, (True, False)) if len(before) else 0.0
        return (whole - past) / GAIN_TRIALS / whole if whole > 0 else 0.0

    def _count(self, outcome: Mapping[str, Any]) -> None:
        found = candidates_of(self.config.front, outcome)
        self.points += [(accuracy, hours) for _, accuracy, hours in found if hours > 0]
        self.ends.append(len(self.points))
        self.best = max([self.best, *(accuracy for _, accuracy, _ in found)])


def candidates_of(front: str, outcome: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """What of a trial can stand on the front, as (epochs, accuracy, GPU-hours alone): `search.front` says which.

    `anytime`: each epoch that the next one confirms, and the end of a completed trial. An epoch counts with the lower
    accuracy of the two: among hundreds of epochs the best would otherwise be those that were lucky once. `final`: the
    end of a completed trial alone.
    """
    rows, cost = outcome["curve"], Cost(**outcome["cost"])
    found = []
    if front == "anytime":
        found = [(a[0], min(a[1], b[1]), a[3]) for a, b in itertools.pairwise(rows) if math.isfinite(b[1])]
    if outcome["state"] == "completed" and rows:
        found.append((rows[-1][0], rows[-1][1], rows[-1][3]))
    return [
        (int(epoch), accuracy, replace(cost, train=seconds).as_hours()["gpu_hours"])
        for epoch, accuracy, seconds in found
        if math.isfinite(accuracy)
    ]
