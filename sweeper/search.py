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
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from sweeper import interrupt, registry
from sweeper.desk import Desk
from sweeper.errors import RunFailed
from sweeper.lane import LanePool
from sweeper.lane_trial import LaneTrial
from sweeper.occupancy import Occupancy
from sweeper.schedulers import METRIC, MODE
from sweeper.trial import TrialConfig
from sweeper.worker import Job

TRAINABLE_BYTES = 16 * 2**20  # a Tune trial only waits: it holds no CPU, so that lanes can have all of them


@dataclass(frozen=True)
class Hooks:
    """What the search needs of the run: `make_job` builds the job of a trial, `on_event` is the live view."""

    make_job: Callable[[TrialConfig], Job]
    on_event: Callable[[Mapping[str, Any]], None]


class Ended(NamedTuple):
    """Which budget ended the search, and the share of their time that the lanes trained (None: nothing was trained)."""

    why: str
    busy: float | None


class StudySearcher(Searcher):  # type: ignore[misc]
    """Tune's searcher over a `Desk`: proposes, hands jobs to the mailbox, and passes on what lanes say.

    All of Optuna's work happens on Tune's own thread, in the order in which jobs end.
    """

    def __init__(self, desk: Desk, pool: LanePool, hooks: Hooks) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self.desk, self.pool, self.hooks = desk, pool, hooks
        self.occupancy = Occupancy(pool.plan.workers)
        self.jobs: dict[str, str] = {}  # of Tune's trials
        self.seen = 0
        self.ended = ""
        self.failure: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, its job already in the mailbox; None while one more than there are lanes are under way."""
        self.pool.check()
        self.drain()
        if len(self.jobs) > self.pool.room:
            return None
        proposed = self.desk.propose()
        if proposed is None:
            return str(Searcher.FINISHED)
        name, config = proposed
        self.jobs[trial_id] = name
        self.pool.submit(name, self.hooks.make_job(config))
        shared = self.desk.open[name].shared_seconds
        return {"job": name, "mailbox": self.pool.mailbox, "shared_seconds": shared}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tune has seen a report: a good moment to look at all that has happened."""
        self.drain()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune has done with a trial; its lane, which it may have been told to stop, says how it ended."""
        if trial_id in self.jobs:
            ray.get(self.pool.mailbox.cancel.remote(self.jobs.pop(trial_id)))
        self.drain()

    def drain(self) -> None:
        """Read the mailbox's new events: pass them to the view, write finished jobs down, stop where a budget ends.

        What goes wrong in it goes wrong each time from then on: Tune passes over an error while it ends a trial.
        """
        interrupt.look()
        try:
            if self.failure is None:
                self._drain()
        except Exception as error:
            self.failure = error
        if self.failure is not None:
            raise self.failure

    def _drain(self) -> None:
        events = ray.get(self.pool.mailbox.events_since.remote(self.seen))
        self.seen += len(events)
        for event in events:
            name = event.get("job")
            if name in self.desk.open:
                self.occupancy.follow(event)
                if event["type"] == "report":
                    event = {**event, "trial": self.desk.open[name].number, "config": self.desk.open[name].config}
                    self.desk.report(name, event)
                elif event.get("is_fatal"):  # the trial has no outcome, and is trained again by the next session
                    raise RunFailed(event["error"])
                elif event["type"] == "end":
                    event = {**event, **self.desk.end(name, event)}
            self.hooks.on_event(event)
        if self.desk.open:  # when none is, finalists follow
            self.pool.expect(self.desk.at_most)
        if events and not self.ended and self.desk.open and (why := self.desk.why_at_once):
            self.ended = why
            ray.get(self.pool.mailbox.stop_all.remote())

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for `Tuner.restore`, which is not used: a run goes on from the study's journal."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """See `__getstate__`."""


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without its tables, its loggers' files, its signal handler and its advice.

    What the searcher raises comes out as it is, and not as the text of a traceback that Tune makes of it. AWS keys stay
    where they are: Tune would hand them to its trials, which need none, through Ray's log that all accounts may read.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "64"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    secrets = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(secrets)
    names = ("ray.tune", "ray.train", "ray.air")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TuneError as error:
        raise (error.__context__ or error) from None
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE.update(secrets)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def run(desk: Desk, pool: LanePool, epochs: int, hooks: Hooks, work: Path, journal: Path) -> Ended:
    """Search until a budget is spent; afterwards every trial that began has an outcome.

    Args:
        epochs: the most epochs that a trial of the space can have: the schedulers' last rung.
        work: a scratch folder for Tune.
        journal: where the scheduler writes down what it knows of the trials.
    """
    config = desk.config
    searcher = StudySearcher(desk, pool, hooks)
    scheduler: Any = config.scheduler
    if not desk.why_ended:
        left = len(desk.waiting) + max(0, (config.trials or 10**9) - desk.asked - len(desk.waiting))
        bundle = tune.PlacementGroupFactory([{"CPU": 0, "memory": TRAINABLE_BYTES}])
        kind = registry.load("schedulers", scheduler.kind)
        with _quiet_tune():
            tune.Tuner(
                tune.with_resources(LaneTrial, bundle),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=kind.build(scheduler, epochs, objectives=config.objectives, journal=journal),
                    num_samples=left,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=str(work / "tune"),
                    verbose=0,
                    progress_reporter=tune.CLIReporter(),  # a notebook's would show an empty box
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                ),
            ).fit()
    for name in list(desk.open):  # stopped trials end at their next epoch
        while name in desk.open:
            ray.get(pool.mailbox.ended.remote(name))
            pool.check()
            searcher.drain()
    return Ended(searcher.ended or desk.why_ended, searcher.occupancy.share)
