"""The rows of a run's tables: what `trials.parquet`, `pareto.*` and their kin hold, by name and type.

`COLUMNS` is a contract with README, checks and users: these names, in this order, and whatever else a row has comes
after them. A row writes itself as a record (a dict by column name); what is missing is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from sweeper import latex, tables
from sweeper.ledger import Cost
from sweeper.tables import plain

Record = dict[str, Any]

ROW_TYPES = {
    "rank": pa.int64(),
    "trial": pa.int64(),
    "teacher": pa.string(),
    "student": pa.string(),
    "loss": pa.string(),
    "synthetic_ratio": pa.float64(),
    "epochs": pa.int64(),
    "accuracy_val": pa.float64(),
    "accuracy_test": pa.float64(),
    "accuracy_test_std": pa.float64(),
    "seeds": pa.int64(),
    "gpu_hours": pa.float64(),
    "gpu_hours_amortized": pa.float64(),
    "gpu_hours_adapt": pa.float64(),
    "gpu_hours_targets": pa.float64(),
    "gpu_hours_synthetic": pa.float64(),
    "gpu_hours_train": pa.float64(),
    "params": pa.int64(),
    "device": pa.string(),
}
COLUMNS = tuple(ROW_TYPES)
FINAL_TYPES = {**ROW_TYPES, "role": pa.string()}
TRIAL_TYPES = {**ROW_TYPES, "state": pa.string(), "error": pa.string(), "config": pa.string(), "on_front": pa.bool_()}
CURVE_TYPES = {
    "trial": pa.int64(),
    "epoch": pa.int64(),
    "accuracy_val": pa.float64(),
    "loss": pa.float64(),
    "train_seconds": pa.float64(),
}
IMPORTANCE_TYPES = {
    "objective": pa.string(),
    "parameter": pa.string(),
    "importance": pa.float64(),
    "trials": pa.int64(),
}
HYPERVOLUME_TYPES = {"seconds": pa.float64(), "hypervolume": pa.float64()}
RUNG_TYPES = {"rung": pa.int64(), "epochs": pa.int64(), "trials": pa.int64(), "spearman": pa.float64()}
# One row a retraining; `cost` in device-hours is what it alone would have cost from nothing.
SEED_TYPES = {
    "role": pa.string(),
    "rank": pa.int64(),
    "trial": pa.int64(),
    "epochs": pa.int64(),
    "seed": pa.int64(),
    "accuracy_val": pa.float64(),
    "accuracy_test": pa.float64(),
    "gpu_hours": pa.float64(),
    "gpu_hours_train": pa.float64(),
}
# Of the exported student of each row of the front, on test: how many images of a class were taken for which.
CONFUSION_TYPES = {
    "rank": pa.int64(),
    "model": pa.string(),
    "truth": pa.string(),
    "taken_for": pa.string(),
    "images": pa.int64(),
}
TEACHER_TYPES = {
    "teacher": pa.string(),
    "model": pa.string(),
    "adapt": pa.string(),
    "accuracy_val": pa.float64(),
    "seconds_adapt": pa.float64(),
    "seconds_targets": pa.float64(),
    "views_cached": pa.int64(),
    "views_read": pa.int64(),
    "device": pa.string(),
}
CHARGE_TYPES = {
    "stage": pa.string(),
    "key": pa.string(),
    "seconds": pa.float64(),
    "device": pa.string(),
    "units": pa.int64(),
}


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of the search, in one line of `trials.parquet`.

    Attributes:
        accuracy_val: on validation, at its last report; NaN where it never came so far.
        cost: what this trial alone would have cost from nothing.
        gpu_hours_amortized: as `ledger.amortize` gives it.
        config: the sampled point, resolved.
        extra: further columns; they follow all others.
    """

    trial: int
    teacher: str
    student: str
    loss: str
    synthetic_ratio: float
    epochs: int
    accuracy_val: float
    cost: Cost
    gpu_hours_amortized: float
    params: int
    device: str
    state: Literal["completed", "stopped", "failed"]
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    on_front: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        """Columns as in trials.parquet, `config` still a mapping. A trial has one seed and never saw the test split."""
        tested = {"rank": None, "accuracy_test": None, "accuracy_test_std": None, "seeds": 1}
        error = None if self.error is None else plain(self.error)
        state = {"state": self.state, "error": error, "config": dict(self.config), "on_front": self.on_front}
        return _with_extra(_descriptive(self, tested) | state, self.extra)


@dataclass(frozen=True, kw_only=True)
class FinalRow:
    """One row of the Pareto table, or one arm of the ablation: a configuration retrained with several seeds.

    Attributes:
        accuracy_val, accuracy_test: means over the seeds (`mean_and_std`).
        accuracy_test_std: sample standard deviation over the seeds; NaN for one seed.
        role: `front`, or the arm of the ablation.
    """

    rank: int
    trial: int
    teacher: str
    student: str
    loss: str
    synthetic_ratio: float
    epochs: int
    accuracy_val: float
    accuracy_test: float
    accuracy_test_std: float
    seeds: int
    cost: Cost
    gpu_hours_amortized: float
    params: int
    device: str
    role: Literal["front", "scratch", "distilled", "distilled+synthetic", "pretrained", "finetuned"] = "front"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> Record:
        tested = {name: getattr(self, name) for name in ("rank", "accuracy_test", "accuracy_test_std", "seeds")}
        return _with_extra(_descriptive(self, tested) | {"role": self.role}, self.extra)


def _descriptive(row: TrialRow | FinalRow, tested: Mapping[str, Any]) -> Record:
    values = {**tested, **row.cost.as_hours()}
    return {name: missing_if_nan(values[name] if name in values else getattr(row, name)) for name in COLUMNS}


def _with_extra(record: Record, extra: Mapping[str, Any]) -> Record:
    assert not record.keys() & extra.keys(), (
        f"extra columns {sorted(record.keys() & extra.keys())} have a meaning already"
    )
    return record | {name: missing_if_nan(value) for name, value in extra.items()}


def missing_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1; NaN for a single value) of a figure over seeds."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan


def columns_of(records: Sequence[Mapping[str, Any]], first: Iterable[str] = COLUMNS) -> list[str]:
    """The contracted columns, then the others in order of appearance."""
    return list(dict.fromkeys([*first, *(name for record in records for name in record)]))


def pareto_texts(records: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The table as csv, md and tex, with every column."""
    columns = columns_of(records)
    writers = {"csv": tables.csv_text, "md": tables.markdown, "tex": latex.latex}
    return {name: write(columns, records).encode() for name, write in writers.items()}
