"""Event files for TensorBoard below the run's folder: `tensorboard --logdir results/NAME/RUN/tensorboard`.

A trial is a run of its own, with its configuration among the hyperparameters. The files are written by tensorboardX,
which comes with Ray Tune; to look at them needs `pip install 'sweeper[tensorboard]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sweeper.registry import Settings
from sweeper.tables import markdown
from sweeper.trackers import Scalar, TrackedRun, Tracker

PACKAGE, EXTRA = "tensorboardX", "tensorboard"
FOLDER = "tensorboard"


class Config(Settings):
    """Nothing to set."""

    kind: Literal["tensorboard"] = "tensorboard"


def start(config: Config, run: TrackedRun) -> Tracker:
    """Writes below the run's own folder."""
    return _TensorBoard(run.folder / FOLDER)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[int, Any] = {}
        self.configs: dict[int, dict[str, Scalar]] = {}
        self.epochs: dict[int, int] = {}

    def begin(self, trial: int, config: Mapping[str, Scalar]) -> None:
        self.writers[trial] = self._writer(f"trial-{trial:05d}")
        self.configs[trial] = dict(config)

    def report(self, trial: int, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writers[trial].add_scalar(name, value, epoch)
        self.writers[trial].flush()
        self.epochs[trial] = epoch

    def end(self, trial: int, state: str, error: str | None, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import hparams

        writer = self.writers.pop(trial)
        for name, value in values.items():
            writer.add_scalar(name, value, self.epochs.get(trial, 0))
        # Into the trial's own run; `add_hparams` would make another one for it.
        for summary in hparams({**self.configs.pop(trial), "state": state}, dict(values)):
            writer.file_writer.add_summary(summary)
        if error:
            writer.add_text("error", error)
        writer.close()

    def front(self, rows: Sequence[Mapping[str, Any]], table: Path) -> None:
        writer = self._writer("front")
        writer.add_text("pareto", markdown([*rows[0]], [dict(row) for row in rows]))
        for row in rows:
            for name in ("accuracy_test", "gpu_hours"):
                writer.add_scalar(f"front/{name}", row[name], row["rank"])
        writer.close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def _writer(self, name: str) -> Any:
        from tensorboardX import SummaryWriter

        folder = self.folder / name
        session = len([*folder.glob("events.*")])  # names differ by the second alone, and a file would be written over
        return SummaryWriter(str(folder), filename_suffix=f".{session}")
