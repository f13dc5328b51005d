"""Runs of a Weights & Biases project, those of a sweep in one group; offline with WANDB_MODE=offline.

The key is W&B's own affair: `wandb login`, or WANDB_API_KEY in the environment. A trial's run has the id RUN-TRIAL, so
that a resumed sweep goes on in those that are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sweeper.errors import InputError
from sweeper.registry import Settings
from sweeper.trackers import Scalar, TrackedRun, Tracker

PACKAGE, EXTRA = "wandb", "wandb"
WITHOUT_A_KEY = ("offline", "disabled", "dryrun")


class Config(Settings):
    """`project`: the space's name by default. `entity`: a user or team; by default the account's own."""

    kind: Literal["wandb"] = "wandb"
    project: str | None = None
    entity: str | None = None


def start(config: Config, run: TrackedRun) -> Tracker:
    """Asks for no account where the mode needs none.

    Raises:
        InputError: nobody is logged in.
    """
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    if os.environ.get("WANDB_MODE", "online") not in WITHOUT_A_KEY and not wandb.login(prompt=False):
        raise InputError("no account: `wandb login`, or WANDB_API_KEY; WANDB_MODE=offline needs none")
    return _WeightsAndBiases(config, run)


class _WeightsAndBiases:
    def __init__(self, config: Config, run: TrackedRun) -> None:
        self.config, self.run = config, run
        self.runs: dict[int, Any] = {}

    def begin(self, trial: int, config: Mapping[str, Scalar]) -> None:
        self.runs[trial] = self._open(f"{trial:05d}", f"trial {trial}", "trial", dict(config))

    def report(self, trial: int, epoch: int, values: Mapping[str, float]) -> None:
        self.runs[trial].log(dict(values), step=epoch)

    def end(self, trial: int, state: str, error: str | None, values: Mapping[str, float]) -> None:
        run = self.runs.pop(trial)
        run.summary.update({**values, "state": state, **({"error": error} if error else {})})
        run.finish(exit_code=int(state == "failed"))

    def front(self, rows: Sequence[Mapping[str, Any]], table: Path) -> None:
        import wandb

        run = self._open("front", "front", "front", {})
        columns = [*rows[0]]
        run.log({"pareto": wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in rows])})
        best = {name: rows[0][name] for name in ("accuracy_test", "gpu_hours", "trial", "student", "teacher")}
        run.summary.update({f"best.{name}": value for name, value in best.items()})
        run.finish()

    def close(self) -> None:
        for run in self.runs.values():  # to be gone on with
            run.finish(exit_code=1)

    def _open(self, name: str, shown: str, kind: str, config: dict[str, Scalar]) -> Any:
        import wandb

        self.run.folder.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self.config.project or self.run.name,
            entity=self.config.entity,
            group=self.run.label,
            id=f"{self.run.run_id}-{name}",
            name=shown,
            job_type=kind,
            config=config,
            dir=str(self.run.folder),
            resume="allow",
            reinit="create_new",  # several trials at a time
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
        )
