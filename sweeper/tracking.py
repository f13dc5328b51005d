"""Tells a run's trackers (`track:` in the space file) of its trials, in the background and each thing once.

A thread of its own talks to them, so that a slow server never holds a lane; what one of them raises is said once and
ends that tracker, never the run. `tracked.jsonl` in the run's folder remembers what each was told: a resumed run goes
on there, and tells a tracker that is new everything from the beginning.
"""

from __future__ import annotations

import importlib.util
import json
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sweeper import page_data, registry
from sweeper.config import SweepConfig
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.journals import mend
from sweeper.ledger import Cost
from sweeper.redact import redacted
from sweeper.results import RunFolder
from sweeper.trackers import Scalar, TrackedRun, Tracker
from sweeper.trial import TrialConfig

MEMORY = "tracked.jsonl"
PATIENCE_S = 120.0  # for what is still to be told when a run ends
FRONT = -1  # in the place of a trial's number, in the memory
EPOCH_VALUES = ("accuracy_val", "loss", "train_seconds")


def check(config: SweepConfig) -> None:
    """Whether what the trackers need is installed.

    Raises:
        InputError: it is not; names the command.
    """
    trackers: Mapping[str, Any] = config.track
    for name, tracker in trackers.items():
        module = registry.load("trackers", tracker.kind)
        if importlib.util.find_spec(module.PACKAGE) is None:
            raise InputError(
                f"track.{name}: {module.PACKAGE} is not installed here: `pip install 'sweeper[{module.EXTRA}]'`"
            )


@contextmanager
def following(folder: RunFolder, config: SweepConfig, say: Callable[[str, str], None]) -> Iterator[Tracking]:
    """The run's trackers for the block; at its end they have been told everything, or said why not.

    Args:
        say: a message to the user and its style.

    Raises:
        InputError: a tracker's server does not answer, or nobody is logged in.
    """
    tracking = Tracking(folder, config, say)
    try:
        yield tracking
    finally:
        tracking.close()


class Tracking:
    """Events of the search in, calls of the trackers out. Called from the driver's thread alone."""

    def __init__(self, folder: RunFolder, config: SweepConfig, say: Callable[[str, str], None]) -> None:
        run = TrackedRun(folder.label, config.name, folder.path.absolute())
        self.told = [
            _Told(name, tracker, run, folder.path / MEMORY, say) for name, tracker in sorted(config.track.items())
        ]
        self.jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self.say = say
        if self.told:
            self.thread.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """An event of the search, as `search.Hooks.on_event` has it."""
        config = event.get("config")
        if not isinstance(config, TrialConfig):
            return
        if event["type"] == "report":
            row = [event["epoch"], *(event[name] for name in EPOCH_VALUES)]
            self._put("reports", event["trial"], config, [row])
        elif event["type"] == "end":
            curve = event.get("curve") or ()
            self._put("ends", event["trial"], config, curve, event["state"], event["error"], event["cost"])

    def earlier(self, trials: Sequence[Any]) -> None:
        """Trials that ended in earlier sessions, as `Study.trials` gives them: told where they were not."""
        for trial in trials:
            outcome, config = trial.user_attrs["outcome"], TrialConfig.model_validate(trial.user_attrs["config"])
            cost = Cost(**outcome["cost"])
            self._put("ends", trial.number, config, outcome["curve"], outcome["state"], outcome["error"], cost)

    def front(self, folder: RunFolder) -> None:
        """The run's Pareto table is written."""
        self._put("front", folder.read_pareto(), folder.path / "pareto.csv")

    def close(self) -> None:
        """Wait for what is still to be told."""
        if not self.told:
            return
        self._put("close")
        self.jobs.put(None)
        self.thread.join(PATIENCE_S)
        if self.thread.is_alive():
            self.say(f"track: not everything was told within {PATIENCE_S:.0f} s; the rest is left out", "yellow")

    def _put(self, what: str, *arguments: Any) -> None:
        for told in self.told:
            self.jobs.put(partial(told.do, what, *arguments))

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()


class _Told:
    """One tracker, and what it was told so far."""

    def __init__(self, name: str, config: Any, run: TrackedRun, memory: Path, say: Callable[[str, str], None]) -> None:
        self.name, self.say, self.memory = f"track.{name}", say, memory
        self.key = fingerprint(config.model_dump(mode="json"))[:10]
        self.last: dict[int, int] = {}  # epoch of each trial that was begun
        self.ended: set[int] = set()
        self.here: set[int] = set()  # begun in this session
        mend(memory)
        for line in memory.read_text(encoding="utf-8").splitlines() if memory.exists() else ():
            found = json.loads(line)
            if found["tracker"] == self.key:
                self.last[found["trial"]] = max(found["epoch"], self.last.get(found["trial"], 0))
                self.ended |= {found["trial"]} if found["ended"] else set()
        try:
            self.tracker: Tracker | None = registry.load("trackers", config.kind).start(config, run)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def do(self, what: str, *arguments: Any) -> None:
        """One thing to tell; nothing more after the first that failed."""
        if self.tracker is None:
            return
        try:
            getattr(self, what)(self.tracker, *arguments)
        except Exception as error:  # of whatever library: the run is worth more than its picture
            self.tracker = None
            reason = " ".join(redacted(f"{type(error).__name__}: {error}").split())[:300]
            self.say(f"{self.name}: {reason}; the run goes on without it", "yellow")

    def reports(self, tracker: Tracker, trial: int, config: TrialConfig, curve: Sequence[Sequence[Any]]) -> None:
        """Epochs of a trial that were not told yet."""
        if trial in self.ended:
            return
        if trial not in self.here:
            tracker.begin(trial, flat(config.model_dump(mode="json")))
            self.here.add(trial)
        for epoch, *values in curve:
            if epoch > self.last.get(trial, 0):
                tracker.report(trial, int(epoch), _finite(dict(zip(EPOCH_VALUES, values, strict=True))))
                self._remember(trial, int(epoch))

    def ends(
        self,
        tracker: Tracker,
        trial: int,
        config: TrialConfig,
        curve: Sequence[Sequence[Any]],
        state: str,
        error: str | None,
        cost: Cost,
    ) -> None:
        """A trial's end, and what of its curve was not told yet."""
        if trial not in self.ended:
            self.reports(tracker, trial, config, curve)
            tracker.end(trial, state, error and redacted(error), _finite(cost.as_hours()))
            self._remember(trial, self.last.get(trial, 0), ended=True)

    def front(self, tracker: Tracker, rows: Sequence[Mapping[str, Any]], table: Path) -> None:
        """The Pareto table."""
        if FRONT not in self.ended and rows:
            tracker.front(rows, table)
            self._remember(FRONT, 0, ended=True)

    def close(self, tracker: Tracker) -> None:
        """The end of the session."""
        tracker.close()

    def _remember(self, trial: int, epoch: int, *, ended: bool = False) -> None:
        self.last[trial] = epoch
        self.ended |= {trial} if ended else set()
        line = {"tracker": self.key, "trial": trial, "epoch": epoch, "ended": ended}
        with self.memory.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def flat(tree: Mapping[str, Any]) -> dict[str, Scalar]:
    """A configuration as dotted paths; a list is its JSON, and what is not there is left out."""
    leaves = ((path, value) for path, value in page_data.flat(tree) if value is not None and value != {})
    return {path: value if isinstance(value, str | int | float | bool) else json.dumps(value) for path, value in leaves}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
