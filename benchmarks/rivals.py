"""The searches that `search.py` compares, each as a `replay.Method`.

All draw from the same `Space` by the same translation into Optuna's domains (`samplers.suggest`), or from it at random,
and each is told what its own kind looks at:

- **random**: each active leaf by itself, as Optuna's random sampler draws it; nobody is stopped. `random, never twice`
  leaves out what it has tried, as one who walks through a grid would.
- **optuna tpe**, **optuna nsga2**: `TPESampler()` and `NSGAIISampler()`, defaults, on accuracy and cost; nobody is
  stopped, because a study of several objectives cannot prune.
- **asha**, **asha + tpe**: sweeper's `asha` kind (Ray Tune's `AsyncHyperBandScheduler`) on accuracy alone, with random
  draws and with `TPESampler()` on accuracy alone; reports go to Optuna, stopped trials are told as pruned.
- **syne-tune moasha**: `MOASHA` of syne-tune with its defaults, on error and the log of the projected cost of the whole
  training, which is kinder to it than cost so far. **ordered**: its ordering put right (`syne_moasha.py`).
- **sweeper**: `desk.Desk` over `study.Study` with its journal, and the `mo_asha` kind, as `sweeper run` has them.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import syne_moasha
from optuna.trial import TrialState
from replay import COMPLETED, FAILED, STOPPED, Curve, Key, Method, Report, key_of

from sweeper import registry
from sweeper.config import SearchConfig
from sweeper.desk import Desk
from sweeper.ledger import Cost
from sweeper.samplers import suggest
from sweeper.space import Space
from sweeper.study import Study
from sweeper.trial import TrialConfig

MEMORY = Path("/dev/shm")  # journals lie here where there is such a folder: the disk is not what is compared


@dataclass(frozen=True)
class Task:
    """One replay: where to search, among which curves, with which seed; `settings` are sweeper's own (`search:`)."""

    space: Space
    curves: Callable[[Key], Curve]
    epochs: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def build_scheduler(kind: Mapping[str, Any], epochs: int, objectives: Mapping[Any, str]) -> Any:
    """A kind of `sweeper/schedulers`, as `search.run` builds it."""
    config = registry.config_class("schedulers", kind["kind"]).model_validate(kind)
    return registry.load("schedulers", kind["kind"]).build(config, epochs, objectives=objectives, journal=None)


class Scheduled:
    """A Tune scheduler without Tune: it is told of trials and says whether they go on."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.trials: dict[str, Any] = {}

    def goes_on(self, name: str, result: Mapping[str, Any]) -> bool:
        """Its answer to a report, as of `desk.told`."""
        if name not in self.trials:
            self.trials[name] = SimpleNamespace(trial_id=name, config={"job": name})
            self.scheduler.on_trial_add(None, self.trials[name])
        return bool(self.scheduler.on_trial_result(None, self.trials[name], dict(result)) != "STOP")

    def end(self, name: str, result: Mapping[str, Any]) -> None:
        trial = self.trials.pop(name, None)
        if trial is not None:
            self.scheduler.on_trial_complete(None, trial, dict(result))


class Sweeper:
    """The real searcher and scheduler of a run; its clock is the replay's, its journal lies in memory."""

    def __init__(self, task: Task) -> None:
        self.space, self.curves, self.now = task.space, task.curves, 0.0
        # the budget is the replay's; `trials` has to be there
        settings: Any = {"trials": 10**9, "scheduler": {"kind": "mo_asha"}, **task.settings}
        self.config = SearchConfig.model_validate(settings)
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.study = Study(Path(self.folder.name) / "journal.log", self.config, task.space, task.seed)
        self.desk = Desk(self.study, self.config, self._cost, 0.0, clock=lambda: self.now)
        kind = self.config.scheduler.model_dump()
        self.scheduled = Scheduled(build_scheduler(kind, task.epochs, self.config.objectives))
        self.keys: dict[str, Key] = {}
        self.last: dict[str, dict[str, Any]] = {}

    def propose(self, now: float) -> tuple[str, Key] | None:
        self.now = now
        proposal = self.desk.propose()
        if proposal is None:
            return None
        name, config = proposal
        self.keys[name] = key_of(self.space, config.model_dump(mode="json"))
        return name, self.keys[name]

    def report(self, report: Report) -> bool:
        self.now = report.now
        event = {**self._event(report), "type": "report", "epochs": report.epochs, "loss": 0.0}
        self.last[report.name] = self.desk.report(report.name, event)
        return self.scheduled.goes_on(report.name, self.last[report.name])

    def end(self, report: Report, state: str) -> None:
        self.now = report.now
        error = "failed when it was recorded" if state == FAILED else None
        self.desk.end(report.name, {**self._event(report), "type": "end", "state": state, "error": error, "params": 0})
        self.scheduled.end(report.name, self.last.pop(report.name, {}))
        del self.keys[report.name]

    def _event(self, report: Report) -> dict[str, Any]:
        return {
            "lane": "0",
            "job": report.name,
            "epoch": report.epoch,
            "accuracy_val": report.accuracy,
            "train_seconds": report.seconds,
            "pretrain_seconds": 0.0,
            "time": report.now,
        }

    def _cost(self, config: TrialConfig, train_seconds: float) -> Cost:
        return self.curves(key_of(self.space, config.model_dump(mode="json"))).cost(train_seconds)


class Optuna:
    """Optuna's ask and tell in memory, with a Tune scheduler on accuracy or with none."""

    def __init__(self, task: Task, sampler: optuna.samplers.BaseSampler, scheduler: Scheduled | None = None) -> None:
        self.space, self.scheduled = task.space, scheduler
        directions: Any = ["maximize"] if scheduler else ["maximize", "minimize"]
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.trials: dict[str, optuna.Trial] = {}

    def propose(self, now: float) -> tuple[str, Key]:
        trial = self.study.ask()
        point = self.space.sample(lambda path, domain: suggest(trial, path, domain))
        name = f"trial-{trial.number:05d}"
        self.trials[name] = trial
        return name, key_of(self.space, point)

    def report(self, report: Report) -> bool:
        if self.scheduled is None:
            return True
        self.trials[report.name].report(report.accuracy, report.epoch)
        return self.scheduled.goes_on(report.name, {"epoch": report.epoch, "accuracy": report.accuracy})

    def end(self, report: Report, state: str) -> None:
        trial = self.trials.pop(report.name)
        if self.scheduled is not None:
            self.scheduled.end(report.name, {"epoch": report.epoch, "accuracy": report.accuracy})
        if state == COMPLETED:
            values = [report.accuracy, report.shared_seconds + report.seconds]
            self.study.tell(trial, values[: len(self.study.directions)])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if state == STOPPED else TrialState.FAIL)


class Random:
    """Draws at random, with a scheduler or none; `never_twice`: until the whole space has been tried."""

    def __init__(
        self, task: Task, goes_on: Callable[[Report], bool] | None = None, *, never_twice: bool = False
    ) -> None:
        self.space, self.goes_on, self.never_twice = task.space, goes_on, never_twice
        self.rng = np.random.default_rng(task.seed)
        self.tried: set[Key] = set()
        self.left = len(task.space.joint_finite(list(task.space.domains))) if never_twice else math.inf
        self.asked = 0

    def draw(self) -> Key:
        """A point as Optuna's random sampler would draw it: each active leaf by itself."""
        point = self.space.sample(lambda _, domain: domain.options[self.rng.integers(len(domain.options))])
        return key_of(self.space, point)

    def propose(self, now: float) -> tuple[str, Key] | None:
        if self.asked >= self.left:
            return None
        key = self.draw()
        while self.never_twice and key in self.tried:
            key = self.draw()
        self.tried.add(key)
        self.asked += 1
        return f"trial-{self.asked:05d}", key

    def report(self, report: Report) -> bool:
        return self.goes_on is None or self.goes_on(report)

    def end(self, report: Report, state: str) -> None:
        """Nobody learns from it."""


def _asha(task: Task) -> Scheduled:
    return Scheduled(build_scheduler({"kind": "asha"}, task.epochs, {"accuracy": "max"}))


def _random_asha(task: Task) -> Method:
    scheduled = _asha(task)
    return Random(task, lambda r: scheduled.goes_on(r.name, {"epoch": r.epoch, "accuracy": r.accuracy}))


METHODS: dict[str, Callable[[Task], Method]] = {
    "random": Random,
    "random, never twice": lambda task: Random(task, never_twice=True),
    "optuna tpe": lambda task: Optuna(task, optuna.samplers.TPESampler(seed=task.seed)),
    "optuna nsga2": lambda task: Optuna(task, optuna.samplers.NSGAIISampler(seed=task.seed)),
    "asha": _random_asha,
    "asha + tpe": lambda task: Optuna(task, optuna.samplers.TPESampler(seed=task.seed), _asha(task)),
    "syne-tune moasha": lambda task: Random(task, syne_moasha.rule(task.epochs, ordered=False)),
    "syne-tune moasha, ordered": lambda task: Random(task, syne_moasha.rule(task.epochs, ordered=True)),
    "sweeper": Sweeper,
}
RANDOM, SWEEPER = "random", "sweeper"


def available() -> list[str]:
    """Names of `METHODS`, without those whose package is not installed (`pip install -e ".[benchmarks]"`)."""
    has_syne_tune = importlib.util.find_spec("syne_tune") is not None
    return [name for name in METHODS if has_syne_tune or not name.startswith("syne-tune")]
