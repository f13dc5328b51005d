"""A run as one JSON document, for programs: what `sweeper export RUN --format json` writes, and the schema of it.

Its tables are those of the run's folder (`rows`), a list of records each; a table that a run does not have is empty.
Columns may be added, so that readers take what they know and leave the rest; one that changes its meaning or goes
raises `VERSION`. `sweeper/schemas/results.schema.json` is what `sweeper schema results` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sweeper import rows
from sweeper.domain_schema import DRAFT, Schema
from sweeper.results import RunFolder

VERSION = 1
TABLES: Mapping[str, tuple[str, Mapping[str, pa.DataType]]] = {
    "pareto": ("The front, retrained: one row a student, by rank.", rows.FINAL_TYPES),
    "ablation": ("The arms of the method's claim, named by `role`.", rows.FINAL_TYPES),
    "trials": ("Every trial of the search.", rows.TRIAL_TYPES),
    "curves": ("Every report of every trial, an epoch each.", rows.CURVE_TYPES),
    "ledger": ("Every charge of device time.", rows.CHARGE_TYPES),
    "finalists": ("Every retraining of a row of the front or an arm of the ablation, by seed.", rows.SEED_TYPES),
    "confusion": ("What the exported students take for what, on test.", rows.CONFUSION_TYPES),
    "teachers": ("The teachers as they were adapted and cached.", rows.TEACHER_TYPES),
    "importance": ("How much of an objective's variation each setting explains.", rows.IMPORTANCE_TYPES),
    "hypervolume": ("How good the front had become after so much device time.", rows.HYPERVOLUME_TYPES),
    "rungs": ("How well the accuracy at each rung ranked trials like the final one.", rows.RUNG_TYPES),
}
_NEVER_MISSING = {"trial", "teacher", "student", "epoch", "epochs", "gpu_hours", "device", "state", "on_front"}
_HOURS = "device-hours, which `device` names"
COLUMNS: Mapping[str, str] = {
    "rank": "Place in the table, from 1.",
    "trial": "Number of the trial in the search, from 0.",
    "teacher": "Every teacher that was heard, or `none`.",
    "student": "The student's architecture, a name of timm.",
    "loss": "The terms that count, such as `ce+kl+align_uniform`.",
    "synthetic_ratio": "Synthetic images to one real one.",
    "epochs": "Epochs trained.",
    "accuracy_val": "Accuracy on validation, in [0, 1]; a mean over the seeds where there are several.",
    "accuracy_test": "Accuracy on test, in [0, 1], a mean over the seeds.",
    "accuracy_test_std": "Sample standard deviation of accuracy_test over the seeds.",
    "seeds": "Trainings behind the row.",
    "gpu_hours": f"What this alone would have cost from nothing: the sum of the four parts, in {_HOURS}.",
    "gpu_hours_amortized": f"The same with shared artifacts split over the trials that used them, in {_HOURS}.",
    "gpu_hours_adapt": f"Adapting its teachers, in {_HOURS}.",
    "gpu_hours_targets": f"Caching its teachers' outputs, in {_HOURS}.",
    "gpu_hours_synthetic": f"Drawing the synthetic images that it used, in {_HOURS}.",
    "gpu_hours_train": f"Its own training, in {_HOURS}.",
    "params": "The student's parameters.",
    "device": "What the times were taken on; without a GPU, CPU slots.",
    "role": "`front`, or the arm of the ablation.",
    "state": "completed, stopped (by the scheduler) or failed.",
    "error": "Why it failed.",
    "config": "The sampled point, resolved.",
    "on_front": "Whether it was on the front of the search.",
    "epoch": "Counted from 1.",
    "train_seconds": "Device-seconds of training so far.",
    "objective": "accuracy or gpu_hours.",
    "parameter": "Dotted path under `trial:`.",
    "importance": "Share of the objective's variation, in [0, 1].",
    "trials": "Trials that had it.",
    "seconds": "Device-seconds.",
    "hypervolume": "Share of accuracy above chance that a budget buys, averaged over budgets in logs, in [0, 1].",
    "rung": "Counted from 0.",
    "spearman": "Rank correlation of the accuracy there with the final one.",
    "stage": "images, adapt, synthetic, targets or train.",
    "key": "Of the artifact, or the trial's number.",
    "units": "Images, views or epochs that were made.",
    "seed": "Of the training.",
    "model": "The folder below models/ of the student, or the teacher's architecture.",
    "truth": "The class that it is.",
    "taken_for": "The class that the student says.",
    "images": "How many.",
    "adapt": "How the teacher was adapted.",
    "seconds_adapt": "Device-seconds of adapting it.",
    "seconds_targets": "Device-seconds of caching its outputs.",
    "views_cached": "Views whose outputs were cached.",
    "views_read": "Views whose outputs were read in training.",
}


def document(run: RunFolder) -> dict[str, Any]:
    """Everything that a run's tables say."""
    environment = run.read_environment() if (run.path / "environment.json").exists() else {}
    facts = environment.pop("facts", {})
    tables = {name: getattr(run, f"read_{name}")() for name in TABLES}
    head = {"version": VERSION, "title": run.label, "facts": facts}
    return {**head, **tables, "space": run.read_space(), "environment": environment}


def results_schema() -> Schema:
    """The schema of `document`, in draft 7."""
    tables = {
        name: {
            "description": what,
            "type": "array",
            "items": {
                "type": "object",
                "properties": {column: _column(name, column, kind) for column, kind in types.items()},
                "required": list(rows.COLUMNS if set(rows.COLUMNS) <= types.keys() else types),
            },
        }
        for name, (what, types) in TABLES.items()
    }
    properties: Schema = {
        "version": {"description": "Of this document.", "const": VERSION},
        "title": {"description": "<name>/<run id>.", "type": "string"},
        "facts": {"description": "What a reader should know of the run, as name and text.", "type": "object"},
        **tables,
        "space": {"description": "The resolved space file; space.schema.json describes it.", "type": "object"},
        "environment": {"description": "Versions, machine, commit and command line.", "type": "object"},
    }
    return {
        "$schema": DRAFT,
        "title": "sweeper results",
        "description": "A run as `sweeper export RUN --format json` writes it. Columns may be added.",
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _column(table: str, name: str, kind: pa.DataType) -> Schema:
    said = {"description": "Mean training loss of the epoch." if (table, name) == ("curves", "loss") else COLUMNS[name]}
    if name == "config":
        return {**said, "type": "object"}
    is_number = pa.types.is_floating(kind)
    known = "integer" if pa.types.is_integer(kind) else "boolean" if pa.types.is_boolean(kind) else "string"
    one = "number" if is_number else known
    return {**said, "type": one if name in _NEVER_MISSING else [one, "null"]}
