"""Two or more finished sweeps side by side: one table, one picture, and where their spaces differ.

The measure is the hypervolume of the front on test: with lo the cost of the cheapest row of all runs, and hi
`pareto.REACH` times that of the dearest, it is the test accuracy that a budget buys, averaged over all budgets in logs
between lo and hi. The reference point (accuracy 0, cost hi) is one for all runs, so that their figures compare.

The interval of a difference is a percentile bootstrap over seeds: each draw resamples, for every row of either run, its
retrainings (accuracy and cost together) with replacement, and takes the difference of the hypervolumes of the means.
It knows the luck of the seeds and nothing else: not that another search of the same space would have found other rows,
nor that other test images would have said something else. Of few seeds it is too narrow (for 3 the spread of resampled
means is 0.82 of the standard error).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper import archive, figures, latex, page_data, pareto, tables
from sweeper.errors import InputError
from sweeper.files import write_atomically
from sweeper.results import RunFolder
from sweeper.rows import Record
from sweeper.tables import TextTable

DRAWS = 2000
LEVEL = 0.95
COLUMNS = (
    *("run", "rows", "trials", "accuracy_test", "accuracy_test_std", "gpu_hours", "hypervolume"),
    *("difference", "difference_low", "difference_high", "device"),
)
Row = NDArray[np.float64]  # [seeds, 2]: accuracy on test and device-hours of each retraining


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side, the first one the base of the differences.

    Attributes:
        fronts: the Pareto records of each run.
        records: a line a run, by `COLUMNS`: its most accurate row on validation, the hypervolume of its front, and the
            difference from the first run's with its interval; None where a row was trained with a single seed, or by a
            version that kept no seeds.
        differences: where the resolved spaces differ: dotted path, and a value a run, None for a missing one.
    """

    runs: tuple[RunFolder, ...]
    fronts: tuple[list[Record], ...]
    records: list[Record]
    differences: list[tuple[str, tuple[Any, ...]]]

    @property
    def devices(self) -> list[str]:
        """That the runs' times were taken on; costs of several do not compare."""
        return sorted({str(record["device"]) for front in self.fronts for record in front})


def compare(runs: Sequence[RunFolder]) -> Comparison:
    """Raises InputError for less than two runs, and where one has no row that was tested."""
    if len(runs) < 2:
        raise InputError(f"compare: needs two runs or more; given {len(runs)} (`sweeper ls` shows them)")
    fronts = tuple(_front_of(run) for run in runs)
    rows = [_rows_of(run, front) for run, front in zip(runs, fronts, strict=True)]
    found = [_line(run, front) for run, front in zip(runs, fronts, strict=True)]
    for record, measured in zip(found, measure(rows), strict=True):
        record |= measured
    spaces = [dict(page_data.flat(run.read_space())) for run in runs]
    paths = dict.fromkeys(path for space in spaces for path in space)
    values = {path: tuple(space.get(path) for space in spaces) for path in paths}
    differ = [(path, given) for path, given in values.items() if any(value != given[0] for value in given)]
    return Comparison(runs=tuple(runs), fronts=fronts, records=found, differences=differ)


def measure(runs: Sequence[Sequence[Row]]) -> list[Record]:
    """hypervolume, difference, difference_low and difference_high of each run; the module says how.

    Args:
        runs: of each run its rows, at least one.
    """
    means = [np.array([row.mean(axis=0) for row in rows]) for rows in runs]
    costs = np.concatenate([mean[:, 1] for mean in means])
    bounds = math.log(costs.min()), math.log(costs.max() * pareto.REACH)
    areas = [_hypervolume(mean, bounds) for mean in means]
    spread = [_resampled(rows, bounds, np.random.default_rng(number)) for number, rows in enumerate(runs)]
    found: list[Record] = []
    for number, (area, drawn) in enumerate(zip(areas, spread, strict=True)):
        low = high = None
        if number and drawn is not None and spread[0] is not None:
            low, high = map(float, np.quantile(drawn - spread[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        gain = area - areas[0] if number else None
        found.append({"hypervolume": area, "difference": gain, "difference_low": low, "difference_high": high})
    return found


def _hypervolume(points: NDArray[np.float64], bounds: tuple[float, float]) -> float:
    """Of [N, 2] accuracies and costs; a mean of cheap seeds may lie below the least cost, and gains nothing by it."""
    low, high = bounds
    logs = np.maximum(np.log(points[:, 1]), low)
    return pareto.hypervolume(np.column_stack([points[:, 0], logs]), (0.0, high), (True, False)) / (high - low)


def _resampled(
    rows: Sequence[Row], bounds: tuple[float, float], generator: np.random.Generator
) -> NDArray[np.float64] | None:
    """The hypervolume of each draw; None where a row has one seed, whose spread nobody knows."""
    if any(len(row) < 2 for row in rows):
        return None
    drawn = [row[generator.integers(len(row), size=(DRAWS, len(row)))].mean(axis=1) for row in rows]
    return np.array([_hypervolume(points, bounds) for points in np.stack(drawn, axis=1)])


def _front_of(run: RunFolder) -> list[Record]:
    front = [row for row in archive.pareto_of(run) if figures.is_shown(row) and row["accuracy_test"] is not None]
    if not front:
        raise InputError(f"run: {run.label} has no row with an accuracy on test and a cost; `sweeper show` tells why")
    return front


def _rows_of(run: RunFolder, front: Sequence[Record]) -> list[Row]:
    """The retrainings of each row; of an earlier version's run their means, as one seed."""
    seeds: dict[int, list[tuple[float, float]]] = {}
    for record in run.read_finalists():
        if record["role"] == "front":
            seeds.setdefault(record["rank"], []).append((record["accuracy_test"], record["gpu_hours"]))
    return [np.array(seeds.get(row["rank"]) or [(row["accuracy_test"], row["gpu_hours"])]) for row in front]


def _line(run: RunFolder, front: Sequence[Record]) -> Record:
    best = front[0]
    names = ("accuracy_test", "accuracy_test_std", "gpu_hours", "device")
    return {"run": run.label, "rows": len(front), "trials": len(run.read_trials()), **{n: best[n] for n in names}}


def table(found: Comparison) -> TextTable:
    """One line a run."""
    unit, factor = tables.cost_unit([record["gpu_hours"] for record in found.records], found.devices[0])
    rows = []
    for r in found.records:
        known = r["difference_low"] is not None
        interval = f"{r['difference_low']:+.3f} to {r['difference_high']:+.3f}" if known else "-"
        gain = "-" if r["difference"] is None else f"{r['difference']:+.3f}"
        best = tables.accuracy_text(r["accuracy_test"], r["accuracy_test_std"])
        cost = tables.significant(r["gpu_hours"] * factor, 3)
        line = (tables.plain(r["run"]), str(r["rows"]), str(r["trials"]), best, cost)
        rows.append((*line, f"{r['hypervolume']:.4f}", gain, interval))
    headers = ("run", "rows", "trials", "test", unit, "hypervolume", "gain", "95%")
    caption = (
        "test and cost: of row 1. hypervolume: test accuracy that a budget buys, averaged over budgets in logs up to "
        "twice the dearest row's cost; one reference point for all. gain: over the first run; its interval is a "
        "bootstrap over seeds, and knows nothing of another search or other images."
    )
    return TextTable(headers, tuple(rows), frozenset(headers[1:]), caption)


def lines(found: Comparison) -> list[str]:
    """What the table does not say: devices that differ, why an interval is missing, and where the spaces differ."""
    said = []
    if len(found.devices) > 1:
        said.append(f"costs were taken on different devices ({', '.join(found.devices)}) and do not compare")
    if any(r["difference"] is not None and r["difference_low"] is None for r in found.records):
        said.append("no interval: it needs two seeds a row (`finalists: {seeds: 2}`), kept in finalists.parquet")
    for path, values in found.differences:
        said.append(f"{path}: {' | '.join(str(value) for value in values)}")
    return said


def write(found: Comparison, out: str | os.PathLike[str]) -> list[Path]:
    """compare.{csv,tex,png,pdf} into a folder; returns their paths."""
    pairs = zip(found.runs, found.fronts, strict=True)
    named = {f"{number}  {run.label}": front for number, (run, front) in enumerate(pairs, 1)}
    made = {f"compare.{kind}": data for kind, data in figures.fronts(named).items()}
    made["compare.csv"] = tables.csv_text(COLUMNS, found.records).encode()
    made["compare.tex"] = latex.latex_table(table(found)).encode()
    for name, data in made.items():
        write_atomically(Path(out) / name, data)
    return [Path(out) / name for name in made]
