"""Runs of an MLflow experiment: one for the sweep, with its Pareto table, and below it one for each trial.

`tracking_uri` left out is MLflow's own choice: $MLFLOW_TRACKING_URI, or files beside. Runs are found again by the tags
`sweeper.run` and `sweeper.trial`, so that a resumed sweep goes on in those that are there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from sweeper.errors import InputError
from sweeper.registry import Settings
from sweeper.trackers import Scalar, TrackedRun, Tracker

PACKAGE, EXTRA = "mlflow", "mlflow"
RUN_TAG, TRIAL_TAG, STATE_TAG = "sweeper.run", "sweeper.trial", "sweeper.state"
WHOLE = "all"
MAX_PARAMS = 100  # of one request
MAX_TEXT = 500  # of a parameter, which servers before 2.8 do not take longer
STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
# A server that is gone shall be told of in seconds, and not after MLflow's minutes of trying again.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class Config(Settings):
    """`tracking_uri`: of a server (`http://host:5000`) or a folder. `experiment`: the space's name by default."""

    kind: Literal["mlflow"] = "mlflow"
    tracking_uri: str | None = None
    experiment: str | None = None

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password:
            raise ValueError("holds a password; give it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return value


def start(config: Config, run: TrackedRun) -> Tracker:
    """Finds or makes the experiment and the sweep's own run.

    Raises:
        InputError: no such server, or it refuses.
    """
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return _MLflow(MlflowClient(config.tracking_uri), config.experiment or run.name, run)
    except (MlflowException, OSError) as error:
        where = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "MLflow"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tracking_uri: {where} does not answer as an MLflow server: {reason}") from error


class _MLflow:
    def __init__(self, client: Any, experiment: str, run: TrackedRun) -> None:
        self.client, self.run = client, run
        found = client.get_experiment_by_name(experiment)
        self.experiment = found.experiment_id if found else client.create_experiment(experiment)
        self.ids = {one.data.tags[TRIAL_TAG]: one.info.run_id for one in self._earlier()}
        self.whole = self._id(WHOLE, run.label, {})
        client.update_run(self.whole, status="RUNNING")

    def begin(self, trial: int, config: Mapping[str, Scalar]) -> None:
        is_new = str(trial) not in self.ids
        run_id = self._id(str(trial), f"trial {trial}", {"mlflow.parentRunId": self.whole})
        if is_new:
            self._log_params(run_id, config)

    def report(self, trial: int, epoch: int, values: Mapping[str, float]) -> None:
        self._log(self.ids[str(trial)], values, epoch)

    def end(self, trial: int, state: str, error: str | None, values: Mapping[str, float]) -> None:
        run_id = self.ids[str(trial)]
        self._log(run_id, values)
        self.client.set_tag(run_id, STATE_TAG, state)
        if error:
            self.client.set_tag(run_id, "sweeper.error", error[:MAX_TEXT])
        self.client.set_terminated(run_id, STATUS[state])

    def front(self, rows: Sequence[Mapping[str, Any]], table: Path) -> None:
        for row in rows:
            rank = {f"front.{name}": row[name] for name in ("accuracy_test", "accuracy_test_std", "gpu_hours")}
            numbers = {name: value for name, value in rank.items() if value is not None}
            self._log(self.whole, {f"{name}.rank-{row['rank']}": value for name, value in numbers.items()})
            if (run_id := self.ids.get(str(row["trial"]))) is not None:
                self._log(run_id, numbers)
                self.client.set_tag(run_id, "sweeper.rank", str(row["rank"]))
        self.client.log_artifact(self.whole, str(table))
        self.client.set_terminated(self.whole, "FINISHED")

    def close(self) -> None:
        """Nothing is held open: a run that is left stays as running until the sweep is taken up again."""

    def _earlier(self) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            text = f"tags.`{RUN_TAG}` = '{self.run.label}'"
            page = self.client.search_runs([self.experiment], text, max_results=1000, page_token=token)
            found += [run for run in page if TRIAL_TAG in run.data.tags]
            token = page.token
            if not token:
                return found

    def _id(self, trial: str, name: str, tags: Mapping[str, str]) -> str:
        if trial not in self.ids:
            own = {RUN_TAG: self.run.label, TRIAL_TAG: trial, **tags}
            self.ids[trial] = self.client.create_run(self.experiment, run_name=name, tags=own).info.run_id
        return str(self.ids[trial])

    def _log_params(self, run_id: str, config: Mapping[str, Scalar]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:MAX_TEXT]) for name, value in config.items()]
        for first in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[first : first + MAX_PARAMS])

    def _log(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self.client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])
