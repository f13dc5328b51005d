"""Where a run's trials can be followed besides its own folder: each tracker is one file, named by `track:`'s `kind`.

A tracker's module has a `Config`, the `PACKAGE` that it needs and the `EXTRA` of sweeper that brings it, and

    start(config, run) -> Tracker      raises InputError where its server or its account can not be reached

Ray Tune's own logger callbacks are not used: here a trial of Tune only waits for messages about its job (`search`), so
that they would log a handle of the mailbox for a configuration, a resumed run's trials again, and no finalist.

A tracker is told on one thread, in order, each thing once also when a run is resumed (`tracking` sees to it). It never
sees a key: those are read by its own library, from the environment or the account's files. What it says of a trial
belongs to no run's identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Scalar = str | int | float | bool


@dataclass(frozen=True)
class TrackedRun:
    """The run that is followed. `label` is name/run id; what a tracker writes to disk goes below `folder`."""

    label: str
    name: str
    folder: Path

    @property
    def run_id(self) -> str:
        return self.label.rpartition("/")[2]


class Tracker(Protocol):
    """Follows trials by their numbers. What any of these raises ends the tracker, never the run."""

    def begin(self, trial: int, config: Mapping[str, Scalar]) -> None:
        """A trial begins, or goes on where an earlier session left it. `config` is flat: dotted path -> value."""

    def report(self, trial: int, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch ended: accuracy_val, loss, train_seconds; what is not finite is left out."""

    def end(self, trial: int, state: str, error: str | None, values: Mapping[str, float]) -> None:
        """A trial was completed, stopped or failed; `values` are its gpu_hours and their parts, and the like."""

    def front(self, rows: Sequence[Mapping[str, Any]], table: Path) -> None:
        """The run is finished: the rows of its Pareto table, and that table's file."""

    def close(self) -> None:
        """Nothing follows in this session."""
