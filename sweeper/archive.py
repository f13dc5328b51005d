"""Finds runs again: lists them, resolves what a user calls one, compares two and exports tables.

Reads what `results.RunFolder` wrote and starts nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import pareto, report
from sweeper.errors import InputError
from sweeper.files import write_atomically
from sweeper.results import RunFolder, pareto_texts, to_json
from sweeper.rows import Record

FORMATS = ("csv", "parquet", "md", "tex", "html", "json", "png")
_JSON_PARTS = (
    *("title", "facts", "pareto", "ablation", "trials", "importance", "hypervolume", "rungs"),
    *("space", "environment"),
)


def list_runs(results_dir: str | os.PathLike[str]) -> list[RunFolder]:
    """Every run below the folder, by name and then by the time of its last change."""
    found = [RunFolder(path.parent) for path in Path(results_dir).glob("*/*/space.yaml")]
    return sorted(found, key=lambda run: (run.name, run.changed, run.run_id))


def find_run(results_dir: str | os.PathLike[str], text: str) -> RunFolder:
    """The run that a user means by a run id or the beginning of one, a name with a single run, name/run id, or a path.

    Raises:
        InputError: no run fits, or several do; the message lists those that exist.
    """
    if (Path(text) / "space.yaml").is_file():
        return RunFolder(Path(text))
    runs = list_runs(results_dir)
    name, _, run_id = text.strip("/").rpartition("/")
    fits = [run for run in runs if run.run_id.startswith(run_id) and name in ("", run.name)]
    fits = [run for run in runs if run.name == text] or fits
    exact = [run for run in fits if run.run_id == run_id]
    if len(exact or fits) == 1:
        return (exact or fits)[0]
    labels = [run.label for run in runs]
    if fits:
        raise InputError(f"run: {text!r} fits {len(fits)} runs; name one: {', '.join(run.label for run in fits)}")
    if not runs:
        raise InputError(f"run: {text!r} is not there: no run below {results_dir}/ (`sweeper run SPACE` makes one)")
    near = difflib.get_close_matches(text, [*labels, *(run.name for run in runs), *(run.run_id for run in runs)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"run: {text!r} is not one{hint} (there are: {', '.join(labels)}; `sweeper ls` shows them)")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two fronts side by side.

    Attributes:
        fronts: the Pareto records of either run.
        reference_hours: the budget up to which they are compared, the highest cost in either front.
        mean_accuracy: for each run the best accuracy on validation that a budget buys, averaged over all budgets from 0
            to `reference_hours` (the front's hypervolume over the reference): higher is better.
        differences: where the two resolved spaces differ: dotted path and the two values, None for a missing one.
    """

    runs: tuple[RunFolder, RunFolder]
    fronts: tuple[list[Record], list[Record]]
    reference_hours: float
    mean_accuracy: tuple[float, float]
    differences: list[tuple[str, Any, Any]]


def compare(a: RunFolder, b: RunFolder) -> Comparison:
    """Raises InputError where one of the runs has no Pareto table yet."""
    fronts = _pareto_of(a), _pareto_of(b)
    hours = max((record["gpu_hours"] for front in fronts for record in front), default=0.0)
    left, right = (dict(_leaves(run.read_space())) for run in (a, b))
    paths = [path for path in dict.fromkeys([*left, *right]) if left.get(path) != right.get(path)]
    return Comparison(
        runs=(a, b),
        fronts=fronts,
        reference_hours=hours,
        mean_accuracy=(_mean_accuracy(fronts[0], hours), _mean_accuracy(fronts[1], hours)),
        differences=[(path, left.get(path), right.get(path)) for path in paths],
    )


def _mean_accuracy(front: Sequence[Record], hours: float) -> float:
    points = [(record["accuracy_val"], record["gpu_hours"]) for record in front if record["accuracy_val"] is not None]
    return pareto.hypervolume(points, (0.0, hours), (True, False)) / hours if points and hours > 0 else 0.0


def _pareto_of(run: RunFolder) -> list[Record]:
    if not (run.path / "pareto.parquet").exists():
        raise InputError(
            f"run: {run.label} has no Pareto table yet; `sweeper run {run.path / 'space.yaml'}` goes on with it"
        )
    return run.read_pareto()


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def export(run: RunFolder, formats: Sequence[str] = FORMATS, out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write the run's table in these formats into `out` (the run's own folder by default).

    Returns:
        The files that were written: pareto.{csv,parquet,md,tex,json,png} and report.html.

    Raises:
        InputError: an unknown format, or a run without a table.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"--format: {unknown[0]!r} is not a format; allowed: {', '.join(FORMATS)}")
    records, folder = _pareto_of(run), Path(out) if out is not None else run.path
    made: dict[str, bytes] = dict(pareto_texts(records))
    made["parquet"] = (run.path / "pareto.parquet").read_bytes()
    if {"html", "png", "json"} & set(formats):
        contents = run.contents()
        made |= {"png": contents.png, "html": report.html(contents)}
        made["json"] = to_json({name: getattr(contents, name) for name in _JSON_PARTS})
    paths = []
    for name in dict.fromkeys(formats):
        path = folder / ("report.html" if name == "html" else f"pareto.{name}")
        write_atomically(path, made[name])
        paths.append(path)
    return paths
