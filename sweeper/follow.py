"""What the mailbox says of lanes and trials, as the terminal shows it: lanes at work, trials as they end, the front."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sweeper import devices, pareto
from sweeper.config import Direction, Objective
from sweeper.console import Search
from sweeper.desk import Desk
from sweeper.findings import STAGES
from sweeper.monitor import SEARCH, Expected, Monitor
from sweeper.occupancy import Occupancy
from sweeper.plan import Artifact
from sweeper.prepared import Prepared
from sweeper.progress import hypervolume_curve
from sweeper.status import LaneStatus, Point
from sweeper.trial import TrialConfig

MOST_BEATEN = 400  # trials that a picture of the front has besides

Describe = Callable[[str], tuple[str, str] | None]


def expect(monitor: Monitor, prepared: Prepared, missing: Sequence[Artifact]) -> None:
    """What the run should take, by the forecast of its beginning, and what earlier sessions spent on artifacts.

    Args:
        missing: what the store does not hold.
    """
    kept, plan, store = prepared.folder.read_forecast(), prepared.plan, prepared.store
    told = kept["forecast"]
    monitor.expect(
        prepared.folder.label,
        {kind: Expected(told[kind]["seconds"], told[kind]["wall_s"]) for kind in STAGES if kind in told},
        kept["device"],
        there={item.kind for item in plan.artifacts()} - {item.kind for item in missing},
        price=partial(devices.price, prices=plan.config.resources.prices),
    )
    for key in {*kept["missing"]} - {item.key for item in missing}:
        record = store.get(key)
        if record is not None and record.charge is not None:
            monitor.spend(record.kind, record.charge.seconds, record.charge.device)


class Lanes:
    """Lanes as they report: what each trains, how far it is, and how much of its time it has trained.

    Args:
        workers: of a lane.
        describe: what a job is called and what it trains, by its name in the mailbox; None for one that is not ours.
    """

    def __init__(self, monitor: Monitor, workers: int, describe: Describe) -> None:
        self.monitor, self.describe = monitor, describe
        self.occupancy = Occupancy(workers)

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind, lane = event["type"], event["lane"]
        if event.get("state") == "withdrawn":  # no lane had it
            return
        self.occupancy.follow(event)
        found = self.describe(event["job"]) if kind in ("start", "report") else None
        said = LaneStatus(lane=int(lane), label="waiting", busy=self.occupancy.of(lane))
        if kind == "left":
            said = LaneStatus(lane=int(lane), label="gone: its node was lost, or nothing was left for it")
        elif found is not None and kind == "start":
            said = LaneStatus(lane=int(lane), job=found[0], label=found[1], busy=said.busy)
        elif found is not None:
            said = LaneStatus(
                lane=int(lane),
                job=found[0],
                label=found[1],
                epoch=event["epoch"],
                epochs=event["epochs"],
                accuracy=event["accuracy_val"] if math.isfinite(event["accuracy_val"]) else None,
                busy=said.busy,
            )
        self.monitor.lane(said, event["train_seconds"] if kind == "report" else 0.0)


class Trials:
    """The search as its events come in: lanes, the trials that end, what they cost, and the front that they make.

    Args:
        chance: accuracy of guessing, below which nothing counts for the hypervolume.
        device: of trainings that do not say theirs.
    """

    def __init__(self, monitor: Monitor, view: Search, desk: Desk, *, workers: int, chance: float, device: str) -> None:
        self.monitor, self.view, self.desk, self.device = monitor, view, desk, device
        self.lanes = Lanes(monitor, workers, self._describe)
        self.growth, self._has_begun = Growth(desk.config.objectives, chance), False
        self._grow()

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.lanes(event)
        if event["type"] == "start" and not self._has_begun:
            self._has_begun = True
            self.monitor.rebase()
        if event["type"] == "end" and "config" in event:
            cost = event["cost"]
            self.monitor.spend(SEARCH, cost.train, event.get("device") or self.device)
            what, hours = label(event["config"]), cost.as_hours()["gpu_hours"]
            self.view.finished(event["trial"], event["state"], what, event["accuracy_val"], hours, event["error"])
            self._grow()

    def _describe(self, job: str) -> tuple[str, str] | None:
        found = self.desk.open.get(job)
        return None if found is None else (f"trial {found.number}", label(found.config))

    def _grow(self) -> None:
        """Take in the trials that ended since the last time."""
        self.growth.take(self.desk)
        if self.growth.hypervolume is not None:
            self.monitor.front(self.growth.points, self.growth.hypervolume)
        self.monitor.use(self.desk.used)


class Growth:
    """The front of a search as it grows.

    Attributes:
        points: the front in the objectives that are searched, and the ends of the latest trials.
        hypervolume: as `progress` has it, of all candidates so far; None before the first.
    """

    def __init__(self, objectives: Mapping[Objective, Direction], chance: float) -> None:
        self.objectives, self.chance = objectives, chance
        self.points: list[Point] = []
        self.hypervolume: float | None = None
        self._best: list[tuple[float, float]] = []  # accuracy and hours of those that nothing beats in the plane
        self._beaten: deque[tuple[float, float]] = deque(maxlen=MOST_BEATEN)
        self._hours: list[float] = []  # least and most of all candidates
        self._seen = 0

    def take(self, desk: Desk) -> None:
        """The candidates of the trials that ended since the last time."""
        for number in range(self._seen, len(desk.ends)):
            points = desk.points[desk.ends[number - 1] if number else 0 : desk.ends[number]]
            if points:
                self._add(points)
        if len(desk.ends) > self._seen and self._best:
            self._measure()
        self._seen = len(desk.ends)

    def _add(self, points: list[tuple[float, float]]) -> None:
        self._beaten.append(points[-1])
        hours = [*self._hours, *(hours for _, hours in points)]
        self._hours = [min(hours), max(hours)]
        candidates = [*self._best, *points]
        mask = pareto.front(candidates, (True, False))
        self._best = list(dict.fromkeys(c for c, is_best in zip(candidates, mask, strict=True) if is_best))

    def _measure(self) -> None:
        ends = [(0.0, 0.0, hours) for hours in self._hours]  # the scale is that of all, the area that of the best
        curve = hypervolume_curve(
            [*ends, *((0.0, accuracy, hours) for accuracy, hours in self._best)],
            reference_accuracy=self.chance,
            shared_seconds=0.0,
        )
        self.hypervolume = curve[-1]["hypervolume"]
        values = [[{"accuracy": a, "gpu_hours": h}[name] for name in self.objectives] for a, h in self._best]
        mask = pareto.front(values, [way == "max" for way in self.objectives.values()])
        front = [point for point, is_on in zip(self._best, mask, strict=True) if is_on]
        self.points = [Point(hours=h, accuracy=a, is_on_front=True) for a, h in front]
        self.points += [Point(hours=h, accuracy=a, is_on_front=False) for a, h in self._beaten if (a, h) not in front]


def label(config: TrialConfig) -> str:
    """A configuration in a few words."""
    synthetic = f" +{config.synthetic.ratio:g}x {config.synthetic.source}" if config.synthetic.ratio else ""
    return f"{config.taught_by} > {config.student.model}, {config.loss_name}{synthetic}"
