"""Finds runs again: lists them, resolves what a user calls one, and exports tables.

Reads what `results.RunFolder` wrote and starts nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from sweeper import report, results_schema
from sweeper.errors import InputError
from sweeper.files import write_atomically
from sweeper.results import RunFolder, pareto_texts, to_json
from sweeper.rows import Record

FORMATS = ("csv", "parquet", "md", "tex", "html", "json", "png", "pdf")


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


def pareto_of(run: RunFolder) -> list[Record]:
    """Its table. Raises InputError where there is none yet."""
    if not (run.path / "pareto.parquet").exists():
        raise InputError(
            f"run: {run.label} has no Pareto table yet; `sweeper run {run.path / 'space.yaml'}` goes on with it"
        )
    return run.read_pareto()


def export(run: RunFolder, formats: Sequence[str] = FORMATS, out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write the run's table in these formats into `out` (the run's own folder by default).

    Returns:
        The files that were written: pareto.{csv,parquet,md,tex,json,png,pdf} and report.html.

    Raises:
        InputError: an unknown format, or a run without a table.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"--format: {unknown[0]!r} is not a format; allowed: {', '.join(FORMATS)}")
    records, folder = pareto_of(run), Path(out) if out is not None else run.path
    made: dict[str, bytes] = dict(pareto_texts(records))
    made["parquet"] = (run.path / "pareto.parquet").read_bytes()
    if {"html", "png", "pdf"} & set(formats):
        contents = run.contents()
        made |= {"png": contents.png, "pdf": contents.pdf, "html": report.html(contents)}
    if "json" in formats:
        made["json"] = to_json(results_schema.document(run))
    paths = []
    for name in dict.fromkeys(formats):
        path = folder / ("report.html" if name == "html" else f"pareto.{name}")
        write_atomically(path, made[name])
        paths.append(path)
    return paths
