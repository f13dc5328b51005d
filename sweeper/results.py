"""Owns `results/<name>/<run id>/`: what a run leaves for its user (`archive` finds it again).

Every file is written whole under a temporary name and then renamed, so that a reader, or the next start after kill -9,
sees an old file or a new one, never half of one. `done.json` comes last and says that nothing is missing. Equal rows
give equal bytes. Parquet keeps every digit; csv, Markdown and LaTeX are rounded (`tables`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sweeper import arrow, findings, page_data, provenance, report
from sweeper.errors import InputError
from sweeper.files import write_atomically, write_folder
from sweeper.ledger import Charge
from sweeper.record import stays_below
from sweeper.redact import redacted
from sweeper.rows import (
    CHARGE_TYPES,
    COLUMNS,
    CONFUSION_TYPES,
    CURVE_TYPES,
    FINAL_TYPES,
    HYPERVOLUME_TYPES,
    IMPORTANCE_TYPES,
    RUNG_TYPES,
    SEED_TYPES,
    TEACHER_TYPES,
    TRIAL_TYPES,
    FinalRow,
    Record,
    TrialRow,
    columns_of,
    mean_and_std,
    missing_if_nan,
    pareto_texts,
)

__all__ = [
    "COLUMNS",
    "FinalRow",
    "RunFolder",
    "TrialRow",
    "mean_and_std",
    "pareto_texts",
    "to_json",
]

_COMPLETE = ("done.json", "space.yaml", "trials.parquet", "pareto.parquet")


class RunFolder:
    """The folder of one run: its name is the run id, its parent's the space's name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        return self.path.resolve().parent.name

    @property
    def label(self) -> str:
        return f"{self.name}/{self.run_id}"

    @property
    def changed(self) -> float:
        """Time of the last change, in seconds of the epoch: each write renames a file in the folder."""
        return self.path.stat().st_mtime

    def summary(self) -> Record:
        """One line of `sweeper ls`: name, run_id, state, trials, best_accuracy_val, changed (a date)."""
        state = "finished" if self.finished else "unfinished"
        try:
            trials = self.read_trials()
        except InputError:  # one damaged folder does not hide the others
            trials, state = [], "damaged"
        scores = [trial["accuracy_val"] for trial in trials if trial["accuracy_val"] is not None]
        return {
            "name": self.name,
            "run_id": self.run_id,
            "state": state,
            "trials": len(trials),
            "best_accuracy_val": max(scores, default=None),
            "changed": datetime.fromtimestamp(self.changed, tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }

    @property
    def finished(self) -> bool:
        """Whether the run has nothing left to do: a folder that lost its table is not finished."""
        return all((self.path / name).exists() for name in _COMPLETE)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the marker of a finished run, and drop what a killed session left half-written; call it last."""
        for leftover in [*self.path.glob(".*.part"), *self.path.glob("models/.*.part")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        self._write("done.json", to_json(dict(facts or {})))

    def write_space(self, space: Mapping[str, Any]) -> None:
        self._write("space.yaml", yaml.safe_dump(dict(space), sort_keys=False, allow_unicode=True).encode())

    def write_trials(self, rows: Sequence[TrialRow]) -> None:
        stored = []
        for record in (row.record() for row in rows):
            record["config"] = json.dumps(record["config"], sort_keys=True, ensure_ascii=False)
            record["error"] = record["error"] and redacted(record["error"])
            stored.append(record)
        self._write_table("trials.parquet", TRIAL_TYPES, stored)

    def write_curves(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Every report of every trial: trial, epoch, accuracy_val, loss, train_seconds and what else it has."""
        self._write_table("curves.parquet", CURVE_TYPES, reports)

    def write_ledger(self, charges: Sequence[Charge]) -> None:
        self._write_table("ledger.parquet", CHARGE_TYPES, [asdict(charge) for charge in charges])

    def write_pareto(self, rows: Sequence[FinalRow]) -> None:
        """pareto.{csv,md,tex,parquet}, in the order of the rows."""
        records = [row.record() for row in rows]
        for name, data in pareto_texts(records).items():
            self._write(f"pareto.{name}", data)
        self._write_table("pareto.parquet", FINAL_TYPES, records)

    def write_ablation(self, rows: Sequence[FinalRow]) -> None:
        """ablation.{csv,md,parquet}: the arms of the method's claim, named by `role`."""
        records = [row.record() for row in rows]
        texts = pareto_texts(records)
        for name in ("csv", "md"):
            self._write(f"ablation.{name}", texts[name])
        self._write_table("ablation.parquet", FINAL_TYPES, records)

    def write_importance(self, records: Sequence[Mapping[str, Any]]) -> None:
        """importance.parquet, from `importance.importances`; no file without records."""
        self._write_or_drop("importance.parquet", IMPORTANCE_TYPES, records)

    def write_hypervolume(self, records: Sequence[Mapping[str, Any]]) -> None:
        """hypervolume.parquet, from `progress.hypervolume_curve`; no file without records."""
        self._write_or_drop("hypervolume.parquet", HYPERVOLUME_TYPES, records)

    def write_rungs(self, records: Sequence[Mapping[str, Any]]) -> None:
        """rungs.parquet, a rung each: how well accuracy there ranked trials like the final one; no file without any."""
        self._write_or_drop("rungs.parquet", RUNG_TYPES, records)

    def write_finalists(self, records: Sequence[Mapping[str, Any]]) -> None:
        """finalists.parquet: what each retraining reached, by seed."""
        self._write_or_drop("finalists.parquet", SEED_TYPES, records)

    def write_confusion(self, records: Sequence[Mapping[str, Any]]) -> None:
        """confusion.parquet: what the exported students take for what, on test; no file without records."""
        self._write_or_drop("confusion.parquet", CONFUSION_TYPES, records)

    def write_teachers(self, records: Sequence[Mapping[str, Any]]) -> None:
        """teachers.parquet, from `cached.teachers`; no file without records."""
        self._write_or_drop("teachers.parquet", TEACHER_TYPES, records)

    def write_environment(self, *, device: str, facts: Mapping[str, Any] | None = None) -> None:
        """environment.json; `facts` is what the report's head says of the run (dataset, classes, ...), by name."""
        text = to_json({**provenance.environment(device), "facts": dict(facts or {})}).decode()
        self._write("environment.json", redacted(text).encode())

    def write_report(self) -> None:
        """pareto.{png,pdf} and report.html, from the files that the run has written so far."""
        contents = self.contents()
        self._write("pareto.png", contents.png)
        self._write("pareto.pdf", contents.pdf)
        self._write("report.html", report.html(contents))

    def write_forecast(self, forecast: Mapping[str, Any]) -> None:
        """forecast.json, from `reckoning`."""
        self._write("forecast.json", to_json(forecast))

    def write_model(self, name: str, files: Mapping[str, bytes]) -> Path:
        """models/<name>/ with exactly these files; an earlier one is replaced as a whole.

        Raises:
            ValueError: a name that is more than that of a file or folder.
        """
        strange = [part for part in (name, *files) if not stays_below(part) or "/" in part]
        if strange:
            raise ValueError(f"{strange[0]!r} is not the name of a file")
        target = self.path / "models" / name
        write_folder(target, files)
        return target

    def read_space(self) -> Record:
        with _reading(self.path / "space.yaml") as path:
            space: Record = yaml.safe_load(path.read_text(encoding="utf-8"))
        return space

    def read_trials(self) -> list[Record]:
        """Records as `TrialRow.record` makes them; what is missing is None."""
        records = self._read_table("trials.parquet")
        with _reading(self.path / "trials.parquet"):
            return [{**record, "config": json.loads(record["config"])} for record in records]

    def read_curves(self) -> list[Record]:
        return self._read_table("curves.parquet")

    def read_ledger(self) -> list[Record]:
        return self._read_table("ledger.parquet")

    def read_pareto(self) -> list[Record]:
        return self._read_table("pareto.parquet")

    def read_ablation(self) -> list[Record]:
        return self._read_table("ablation.parquet")

    def read_importance(self) -> list[Record]:
        return self._read_table("importance.parquet")

    def read_hypervolume(self) -> list[Record]:
        return self._read_table("hypervolume.parquet")

    def read_rungs(self) -> list[Record]:
        return self._read_table("rungs.parquet")

    def read_finalists(self) -> list[Record]:
        return self._read_table("finalists.parquet")

    def read_confusion(self) -> list[Record]:
        return self._read_table("confusion.parquet")

    def read_teachers(self) -> list[Record]:
        return self._read_table("teachers.parquet")

    def read_environment(self) -> Record:
        with _reading(self.path / "environment.json") as path:
            environment: Record = json.loads(path.read_text(encoding="utf-8"))
        return environment

    def read_forecast(self) -> Record:
        """What is kept; empty where there is none, or something else lies there."""
        try:
            found: Record = json.loads((self.path / "forecast.json").read_bytes())
            found["missing"], found["forecast"][findings.TOTAL]["seconds"]
            findings.forecast_and_fact(found["forecast"], found.get("fact", {}))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}
        return found

    def contents(self) -> page_data.Contents:
        """What the report is made of, read from the files that are there."""
        return page_data.contents(self)

    def _read_table(self, name: str) -> list[Record]:
        with _reading(self.path / name) as path:
            # ParquetFile, since read_table takes a folder of that name too
            records: list[Record] = arrow.plain(pq.ParquetFile(path).read()).to_pylist() if path.exists() else []
        return records

    def _write_table(self, name: str, types: Mapping[str, pa.DataType], records: Sequence[Mapping[str, Any]]) -> None:
        columns = {
            column: pa.array([missing_if_nan(record.get(column)) for record in records], types.get(column))
            for column in columns_of(records, types)
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        self._write(name, sink.getvalue().to_pybytes())

    def _write_or_drop(self, name: str, types: Mapping[str, pa.DataType], records: Sequence[Mapping[str, Any]]) -> None:
        """A table that not every run has; one that an earlier session wrote does not outlive its records."""
        if records:
            self._write_table(name, types, records)
        else:
            (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turns what the readers of file formats raise into the user's error: whatever lies in a folder is only data."""
    try:
        yield path
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, pa.ArrowException) as error:
        what = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: is damaged, or can not be read: {what}; move it out of the run's folder") from error


def to_json(value: Any) -> bytes:
    """Readable JSON with sorted keys; ValueError for NaN, which JSON does not have."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "replace")  # a command line can hold bytes that are no text
