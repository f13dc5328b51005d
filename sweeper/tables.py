"""Rows as text: figures with their units, the tables that people read, and csv and Markdown (`latex` has the rest).

A row comes as a record (a mapping with the names of `results.COLUMNS`). `pareto`, `ablation` and `runs` choose what a
reader needs and word it; the terminal and the HTML report lay out the same cells. `csv_text` and `markdown`
write every column under its contracted name. Nothing here depends on a locale, the time or a terminal: equal records
give equal bytes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Record = Mapping[str, Any]

UNIT_STEP = 1000.0  # from kB to MB
SECONDS_BELOW_HOURS = 0.1  # costs that are all below six minutes are shown in seconds: 0.0031 h says nothing
STAGE_TITLES = {"adapt": "teachers"}  # where people read of them; the others go by their names
ON_FRONT, SAVING = "on the front", "saving"
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class TextTable:
    """Cells as a reader sees them; the columns named in `right` hold figures."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    caption: str = ""


def plain(text: object) -> str:
    """Text without control characters; line ends stay."""
    lines = _ESCAPES.sub("", str(text)).splitlines()
    return "\n".join("".join(char if char.isprintable() else " " for char in line).rstrip() for line in lines)


def significant(value: float, digits: int = 4) -> str:
    """A number with that many significant digits and no exponent; empty for what is not a finite number."""
    if not math.isfinite(value):
        return ""
    return f"{value:.{_decimals(value, digits)}f}" if value else "0"


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def processor(device: str) -> str:
    """`CPU` or `GPU`, for the unit of a cost."""
    return "CPU" if device.lower().startswith("cpu") else "GPU"


def cost_unit(hours: Sequence[float], device: str) -> tuple[str, float]:
    """Unit for a column of device-hours and the factor to it: (`GPU-h`, 1), or (`CPU-s`, 3600) where all are small."""
    small = max((value for value in hours if math.isfinite(value)), default=0.0) < SECONDS_BELOW_HOURS
    return (f"{processor(device)}-s", 3600.0) if small else (f"{processor(device)}-h", 1.0)


def params_text(count: int) -> str:
    """`912`, `339k`, `11.2M`."""
    if count < 1000:
        return str(count)
    return significant(count / 1e3, 3) + "k" if count < 1e6 else significant(count / 1e6, 3) + "M"


def bytes_text(count: int) -> str:
    """`912 B`, `17.4 kB`, `5.23 MB`, `1.20 TB`."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= UNIT_STEP and len(units) > 1:
        value, units = value / UNIT_STEP, units[1:]
    return f"{count} B" if units[0] == "B" else f"{significant(value, 3)} {units[0]}"


def accuracy_text(mean: float | None, std: float | None = None) -> str:
    """`0.947`, `0.947±0.004`, or `-` where there is none."""
    if mean is None or math.isnan(mean):
        return "-"
    return f"{mean:.3f}" + ("" if std is None or math.isnan(std) else f"±{std:.3f}")


def ratio_text(ratio: float | None) -> str:
    """Synthetic images for each real one: `0`, `0.5x`, `2x`."""
    return f"{ratio:g}x" if ratio else "0"


def _costs(records: Sequence[Record]) -> tuple[str, list[str]]:
    unit, factor = cost_unit([r["gpu_hours"] for r in records], str(records[0]["device"]) if records else "cpu")
    costs = [r["gpu_hours"] * factor for r in records]
    # Decimal points in one line: four digits for the highest cost, and no fewer than two for the lowest.
    places = max(_decimals(max(costs, default=0.0), 4), _decimals(min(costs, default=0.0), 2))
    return unit, [f"{cost:.{places}f}" for cost in costs]


def pareto(records: Sequence[Record]) -> TextTable:
    """The front; the caption says what the figures are. What a run does not tell has no column."""
    unit, costs = _costs(records)
    known = {ON_FRONT: [percent(r.get("front_probability")) for r in records], unit: costs}
    known |= {
        SAVING: [percent(r.get("saving")) for r in records],
        "params": [params_text(r["params"]) for r in records],
    }
    known = {header: cells for header, cells in known.items() if set(cells) != {"-"}}
    has_epochs = len({r["epochs"] for r in records}) > 1
    rows = tuple(
        (
            *(plain(r[name]) for name in ("rank", "trial", "teacher", "student", "loss")),
            ratio_text(r["synthetic_ratio"]),
            *([str(r["epochs"])] if has_epochs else []),
            accuracy_text(r["accuracy_val"]),
            accuracy_text(r["accuracy_test"], r["accuracy_test_std"]),
            *(cells[row] for cells in known.values()),
        )
        for row, r in enumerate(records)
    )
    seeds = sorted({int(r["seeds"]) for r in records})
    spread = f"mean of {'/'.join(map(str, seeds))} seeds ± std" if seeds[-1:] > [1] else "one seed"
    figures = (*(["epochs"] if has_epochs else []), "val", "test", *known)
    chance = f" {ON_FRONT}: how likely, by its spread over seeds." if ON_FRONT in known else ""
    saved = f" {SAVING}: of what pre-training and fine-tuning this student costs." if SAVING in known else ""
    return TextTable(
        headers=("#", "trial", "teacher", "student", "loss", "synth", *figures),
        rows=rows,
        right=frozenset({"#", "trial", "synth", *figures}),
        caption=f"val, test: accuracy, {spread}.{chance} {unit}: whole cost from nothing.{saved}",
    )


def percent(share: float | None) -> str:
    """A share as `17%`, or `-` where it is not known."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.0f}%"


def ablation(records: Sequence[Record]) -> TextTable:
    """One line an arm; `gain` is in points of test accuracy over the arm `scratch` with the same student."""
    unit, costs = _costs(records)
    scratch = {r["student"]: r["accuracy_test"] for r in records if r["role"] == "scratch"}
    savings = [percent(r.get("saving")) for r in records]
    saved = [SAVING] if set(savings) - {"-"} else []
    rows = []
    for r, cost, saving in zip(records, costs, savings, strict=True):
        test, base = r["accuracy_test"], scratch.get(r["student"])
        gain = "" if test is None or base is None or r["role"] == "scratch" else f"{100 * (test - base):+.1f}"
        names = (plain(r[name]) for name in ("role", "student", "loss"))
        accuracy = accuracy_text(test, r["accuracy_test_std"])
        rows.append((*names, ratio_text(r["synthetic_ratio"]), accuracy, gain, cost, *([saving] if saved else [])))
    return TextTable(
        headers=("arm", "student", "loss", "synth", "test", "gain", unit, *saved),
        rows=tuple(rows),
        right=frozenset({"synth", "test", "gain", unit, *saved}),
        caption="gain: points of test accuracy over the same student from scratch.",
    )


def trials(records: Sequence[Record], unit: str, factor: float) -> TextTable:
    """One line a trial of the search; costs in `unit`, which is `factor` of a device-hour."""
    rows = [
        (
            *(plain(r[name]) for name in ("trial", "teacher", "student", "loss")),
            ratio_text(r["synthetic_ratio"]),
            str(r["epochs"]),
            plain(r["state"]),
            accuracy_text(r["accuracy_val"]),
            significant(r["gpu_hours"] * factor, 3),
        )
        for r in records
    ]
    headers = ("trial", "teacher", "student", "loss", "synth", "epochs", "state", "val", unit)
    return TextTable(headers, tuple(rows), frozenset({"trial", "synth", "epochs", "val", unit}))


def runs(records: Sequence[Record]) -> TextTable:
    """One line a run, from the records of `results.list_runs`."""
    rows = [
        tuple(map(plain, (r["name"], r["run_id"], r["state"], r["trials"], best, r["changed"])))
        for r, best in ((r, accuracy_text(r["best_accuracy_val"])) for r in records)
    ]
    headers = ("name", "run", "state", "trials", "best val", "changed")
    return TextTable(headers=headers, rows=tuple(rows), right=frozenset({"run", "trials", "best val"}))


def _figure(name: str, value: object) -> str:
    """One csv cell: accuracies with 6 decimals, device-hours and other floats with 9 significant digits, no exponent.

    Nine digits keep `gpu_hours` equal to the sum of its parts to 1e-9 of it, however small the run was.
    """
    if isinstance(value, str):
        text = plain(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if not math.isfinite(value):
        return ""
    if name.startswith("accuracy"):
        return f"{value:.6f}"
    return f"{Decimal(f'{value:.9g}'):f}"


def csv_text(columns: Sequence[str], records: Sequence[Record]) -> str:
    """RFC 4180 but for the line ends, which are `\\n`; what is missing or not finite is empty.

    A name that a spreadsheet would compute (`=cmd()`) begins with an apostrophe; Parquet and JSON hold it as it is.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_figure(name, record.get(name)) for name in columns] for record in records)
    return buffer.getvalue()


def short(name: str, value: object) -> str:
    """One cell of the Markdown and LaTeX tables: 4 decimals for accuracies, 4 significant digits for costs."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        if name.startswith("accuracy"):
            return f"{value:.4f}"
        return significant(value) if name.startswith("gpu_hours") else f"{value:g}"
    return "" if value is None else " ".join(plain(value).split())


def is_numeric(records: Sequence[Record], name: str) -> bool:
    values = [record[name] for record in records if record.get(name) is not None]
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def markdown(columns: Sequence[str], records: Sequence[Record]) -> str:
    """A table of GitHub's Markdown. Cells are escaped: no markup or HTML of a name takes effect."""
    rules = ["---:" if is_numeric(records, name) else ":---" for name in columns]
    body = [[markdown_escape(short(name, record.get(name))) for name in columns] for record in records]
    lines = [[markdown_escape(name) for name in columns], rules, *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    # An underscore inside a word is only itself; the names of columns must stay as they are.
    return re.sub(r"(?<![^\W_])_+|_+(?![^\W_])", lambda run: "\\_" * len(run[0]), text)
