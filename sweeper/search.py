"""The search: Ray Tune asks the study for trials, and lanes train them. The only seam between Tune, Optuna and lanes.

A Tune trial is a small `Trainable` that waits for messages about its job; the training itself happens on a lane, so
that neither a trial's start nor its end costs a process. One job more than there are lanes is always proposed, so that
a lane that finishes finds the next job waiting.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from sweeper import registry
from sweeper.config import SearchConfig
from sweeper.lane import Job, LanePool
from sweeper.ledger import Cost
from sweeper.study import Study, spent_seconds
from sweeper.trial import TrialConfig

TRAINABLE_BYTES = 16 * 2**20  # a Tune trial only waits: it holds no CPU, so that lanes can have all of them


class LaneTrial(tune.Trainable):  # type: ignore[misc]
    """A trial as Tune sees it: each `step` is the next message about its job."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the job that the searcher has put into the mailbox."""
        self.mailbox = config["mailbox"]
        self.job = config["job"]
        self.last: dict[str, Any] = {"epoch": 0, "accuracy": 0.0}

    def step(self) -> dict[str, Any]:
        """Wait for the job's next epoch or its end."""
        message = ray.get(self.mailbox.next_message.remote(self.job))
        if message["type"] != "report":
            return {**self.last, "done": True}
        self.last = {"epoch": message["epoch"], "accuracy": message["accuracy_val"]}
        return dict(self.last)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the old job (asking its lane to stop it where it still runs) and take up a new one."""
        self.cleanup()
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: a job's checkpoint is the mailbox's."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See `save_checkpoint`."""

    def cleanup(self) -> None:
        """Ask for the job's end; nothing happens where it has ended."""
        ray.get(self.mailbox.cancel.remote(self.job))


@dataclass(frozen=True)
class Hooks:
    """What the search needs to know of the run, and whom it tells.

    make_job: builds the job of a trial; cost: what a resolved trial with so many seconds of training costs alone;
    shared_seconds: device-seconds of shared artifacts, counted into a budget of GPU-hours; on_event: the live view.
    """

    make_job: Callable[[TrialConfig], Job]
    cost: Callable[[TrialConfig, float], Cost]
    shared_seconds: float
    on_event: Callable[[Mapping[str, Any]], None]


def job_id(number: int) -> str:
    """The mailbox's name for trial `number` of the search."""
    return f"trial-{number:05d}"


class StudySearcher(Searcher):  # type: ignore[misc]
    """Tune's searcher over a `Study`: proposes, hands jobs to the mailbox, and writes down how they end.

    All of Optuna's work happens on Tune's own thread, in the order in which jobs end.
    """

    def __init__(self, study: Study, pool: LanePool, config: SearchConfig, hooks: Hooks) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.book, self.pool, self.config, self.hooks = study, pool, config, hooks
        self.waiting = study.interrupted()
        self.open: dict[str, tuple[int, TrialConfig]] = {}
        self.curves: dict[str, list[list[float]]] = {}
        self.seen = 0
        self.asked = len(study.trials())

    def exhausted(self) -> bool:
        """Whether the budget allows no further trial."""
        if self.waiting:
            return False
        if self.config.trials is not None and self.asked >= self.config.trials:
            return True
        if self.config.gpu_hours is None:
            return False
        spent = spent_seconds(self.book.trials()) + self.hooks.shared_seconds
        return spent / 3600 >= self.config.gpu_hours

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, its job already in the mailbox; interrupted ones first."""
        self.pool.check()
        self.drain()
        if self.exhausted():
            return str(Searcher.FINISHED)
        number, config = self.waiting.pop(0) if self.waiting else self.book.ask()
        self.asked += 1
        name = job_id(number)
        self.open[name] = (number, config)
        self.curves[name] = []
        self.pool.submit(name, self.hooks.make_job(config))
        return {"job": name, "mailbox": self.pool.mailbox}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune has seen a report: a good moment to look at all that has happened."""
        self.drain()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is told here: how a job ended is what its lane says."""
        self.drain()

    def drain(self) -> None:
        """Read the mailbox's new events: pass them to the view, and write finished jobs down."""
        events = ray.get(self.pool.mailbox.events_since.remote(self.seen))
        self.seen += len(events)
        for event in events:
            name = event.get("job")
            if event["type"] == "report" and name in self.curves:
                row = [event["epoch"], event["accuracy_val"], event["loss"], event["train_seconds"]]
                earlier = [r for r in self.curves[name] if r[0] < row[0]]  # a restarted worker repeats epochs
                self.curves[name] = [*earlier, row]
                event = {**event, "config": self.open[name][1]}
            if event["type"] == "end" and name in self.open:
                event = {**event, **self._settle(name, event)}
            self.hooks.on_event(event)

    def _settle(self, name: str, end: Mapping[str, Any]) -> dict[str, Any]:
        number, config = self.open.pop(name)
        seen = self.curves.pop(name)
        curve = [list(row) for row in end.get("curve") or seen]  # a trial that began under an earlier driver knows more
        seconds = end.get("train_seconds", curve[-1][3] if curve else 0.0)
        cost = self.hooks.cost(config, seconds)
        outcome = {
            "state": end["state"],
            "error": end["error"],
            "epochs": len(curve) and int(curve[-1][0]),
            "num_epochs": config.train.epochs,
            "accuracy_val": curve[-1][1] if curve else None,
            "cost": {"adapt": cost.adapt, "targets": cost.targets, "synthetic": cost.synthetic, "train": cost.train},
            "pretrain_seconds": end.get("pretrain_seconds", 0.0),
            "params": end.get("params", 0),
            "curve": curve,
        }
        self.book.record(number, outcome)
        return {"trial": number, "config": config, "cost": cost, "accuracy_val": outcome["accuracy_val"]}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for `Tuner.restore`, which is not used: a run goes on from the study's journal."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without its tables, its loggers' files, its signal handler and its advice."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "64"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    names = ("ray.tune", "ray.train", "ray.air")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(study: Study, pool: LanePool, config: SearchConfig, epochs: int, hooks: Hooks, work: Path) -> None:
    """Search until the budget is spent; afterwards every trial of the study has an outcome.

    Args:
        epochs: the most epochs that a trial of the space can have: the schedulers' last rung.
        work: a scratch folder for Tune.
    """
    searcher = StudySearcher(study, pool, config, hooks)
    scheduler: Any = config.scheduler
    ahead = pool.plan.num_lanes + 1
    if not searcher.exhausted():
        left = len(searcher.waiting) + max(0, (config.trials or 10**9) - searcher.asked - len(searcher.waiting))
        bundle = tune.PlacementGroupFactory([{"CPU": 0, "memory": TRAINABLE_BYTES}])
        with _quiet_tune():
            tune.Tuner(
                tune.with_resources(LaneTrial, bundle),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=registry.load("schedulers", scheduler.kind).build(scheduler, epochs),
                    num_samples=left,
                    max_concurrent_trials=ahead,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(work / "tune"),
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                ),
            ).fit()
    for name in list(searcher.open):  # stopped trials end at their next epoch
        while name in searcher.open:
            ray.get(pool.mailbox.ended.remote(name))
            pool.check()
            searcher.drain()
