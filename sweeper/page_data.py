"""What a run's page is made of: its records, and what the interactive figures draw, as plain data.

Apart from the rendering (`report`), so that it can be read and tested without a browser. Nothing here depends on the
time or a locale: equal records give equal data. Names are not escaped in it: whoever shows them does that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweeper import figures, rank_agreement, tables
from sweeper.tables import Record

if TYPE_CHECKING:
    from sweeper.results import RunFolder

MAX_TRIALS = 2000  # in figures and in the table of all trials; the front's and the most accurate ones stay
MAX_CURVES = 200
LOG_FROM = 20.0  # a figure whose greatest value is so many times its least is drawn in logs
MAX_LEAVES = 9  # axes of the parallel coordinates, besides accuracy and cost
MAX_SHEET_BYTES = 1_500_000  # a contact sheet that is larger goes into the page as JPEG
GROUPS = ("teacher", "student", "loss", "synthetic_ratio")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a page is made of.

    Attributes:
        title: `<name>/<run id>`.
        facts: what the reader should know of the run, as name and text.
        pareto, ablation, trials, ledger: records of the files of those names.
        importance, hypervolume, rungs, curves, finalists, confusion, teachers: likewise; empty in runs that were
            written before they existed.
        space: the resolved space file.
        environment, forecast: as in environment.json and forecast.json.
        sheets: contact sheets as PNG, by name: `real`, `synthetic-<source>`.
        png, pdf: the picture of the front.
        progress_png: the picture of `hypervolume`; empty without it.
    """

    title: str
    facts: Mapping[str, object]
    pareto: Sequence[Record]
    ablation: Sequence[Record]
    trials: Sequence[Record]
    ledger: Sequence[Record]
    space: Mapping[str, Any]
    environment: Mapping[str, Any]
    png: bytes
    pdf: bytes = b""
    importance: Sequence[Record] = ()
    hypervolume: Sequence[Record] = ()
    rungs: Sequence[Record] = ()
    curves: Sequence[Record] = ()
    finalists: Sequence[Record] = ()
    confusion: Sequence[Record] = ()
    teachers: Sequence[Record] = ()
    forecast: Mapping[str, Any] = field(default_factory=dict)
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    progress_png: bytes = b""

    @property
    def device(self) -> str:
        """The device that the run's times were taken on."""
        return figures.device_of([*self.pareto, *self.trials])


def contents(run: RunFolder) -> Contents:
    """Read from the files that are there."""
    environment = run.read_environment() if (run.path / "environment.json").exists() else {}
    facts = environment.pop("facts", {})
    pareto, ablation, trials = run.read_pareto(), run.read_ablation(), run.read_trials()
    curve = run.read_hypervolume()
    pictures = figures.front(pareto, trials, ablation)
    found = [*sorted(run.path.glob("real.png")), *sorted(run.path.glob("synthetic-*.png"))]
    return Contents(
        title=run.label,
        facts=facts,
        pareto=pareto,
        ablation=ablation,
        trials=trials,
        ledger=run.read_ledger(),
        space=run.read_space(),
        environment=environment,
        png=pictures["png"],
        pdf=pictures["pdf"],
        importance=run.read_importance(),
        hypervolume=curve,
        rungs=run.read_rungs(),
        curves=run.read_curves(),
        finalists=run.read_finalists(),
        confusion=run.read_confusion(),
        teachers=run.read_teachers(),
        forecast=run.read_forecast(),
        sheets={path.stem: path.read_bytes() for path in found},
        progress_png=figures.progress_png(curve, figures.device_of([*pareto, *trials])) if curve else b"",
    )


def figure_data(made: Contents) -> dict[str, Any]:
    """What the script draws: columns of trials, curves, rows of the front and arms, in the unit `unit`.

    A trial is named by its place in `trials` everywhere. Those that failed, or never cost anything, are not drawn.
    """
    trials = drawn_trials(made.trials)
    place = {int(trial["trial"]): number for number, trial in enumerate(trials)}
    unit, factor = cost_unit(made)
    leaves = _leaves(trials, made.importance)
    finals = [record for record in made.pareto if figures.is_shown(record)]
    tested = [r["accuracy_test"] - (r["accuracy_test_std"] or 0.0) for r in finals if r["accuracy_test"] is not None]
    floor = figures.floor([*tested, *(r["accuracy_val"] for r in finals)], [t["accuracy_val"] for t in trials])
    looks = figures.looks([str(record["teacher"]) for record in [*made.pareto, *trials]])
    return {
        "unit": unit,
        "floor": floor,
        "looks": [{"teacher": name, "colour": look.colour, "symbol": look.symbol} for name, look in looks.items()],
        "trials": [_trial(record, factor, leaves) for record in trials],
        "leaves": [{"name": name, "isLog": is_log(values)} for name, values in leaves.items()],
        "curves": _curves(made.curves, trials, place, factor),
        "progress": _progress(made),
        "rungs": _rungs(made, trials, place),
        "front": [_final(record, factor, place) for record in finals],
        "arms": [_final(record, factor, place) for record in made.ablation if figures.is_shown(record)],
    }


def cost_unit(made: Contents) -> tuple[str, float]:
    """One unit for all costs of a page, and the factor from device-hours to it."""
    return tables.cost_unit([record["gpu_hours"] for record in [*made.pareto, *made.ablation]], made.device)


def drawn_trials(trials: Sequence[Record]) -> list[Record]:
    """Those with an accuracy and a cost, by number; of more than `MAX_TRIALS` the front's and the most accurate."""
    shown = [trial for trial in trials if figures.is_shown(trial)]
    ranked = sorted(shown, key=lambda t: (not t.get("on_front"), -t["accuracy_val"]))[:MAX_TRIALS]
    return sorted(ranked, key=lambda t: int(t["trial"]))


def is_log(values: Sequence[Any]) -> bool:
    """Whether figures spread over so many sizes that only logs show them."""
    known = [value for value in values if is_figure(value)]
    return bool(known) and min(known) > 0 and max(known) / min(known) >= LOG_FROM


def is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _trial(record: Record, factor: float, leaves: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    config = dict(flat(record["config"]))
    return {
        **{name: record[name] for name in ("trial", *GROUPS, "epochs", "state", "params")},
        "accuracy": record["accuracy_val"],
        "cost": record["gpu_hours"] * factor,
        "onFront": bool(record.get("on_front")),
        "config": config,
        "leaves": [config.get(name) for name in leaves],
    }


def _final(record: Record, factor: float, place: Mapping[int, int]) -> dict[str, Any]:
    return {
        **{name: record[name] for name in ("rank", "trial", *GROUPS, "epochs", "seeds", "role")},
        "place": place.get(int(record["trial"])),
        "accuracy": record["accuracy_val"],
        "test": record["accuracy_test"],
        "std": record["accuracy_test_std"],
        "cost": record["gpu_hours"] * factor,
    }


def _curves(
    curves: Sequence[Record], trials: Sequence[Record], place: Mapping[int, int], factor: float
) -> list[dict[str, Any]]:
    """Accuracy at each epoch over the cost of a training that ended there; of many trials only the best are drawn."""
    ranked = sorted(trials, key=lambda t: (not t.get("on_front"), -t["accuracy_val"]))[:MAX_CURVES]
    kept = {int(trial["trial"]) for trial in ranked}
    found: dict[int, list[Record]] = {}
    for record in curves:
        if record["trial"] in kept and record.get("gpu_hours") and record["accuracy_val"] is not None:
            found.setdefault(record["trial"], []).append(record)
    return [
        {
            "place": place[trial],
            "epochs": [row["epoch"] for row in rows],
            "cost": [row["gpu_hours"] * factor for row in rows],
            "accuracy": [row["accuracy_val"] for row in rows],
        }
        for trial, rows in sorted(found.items())
    ]


def _progress(made: Contents) -> dict[str, Any] | None:
    """Hypervolume over the device time that the search had spent, in a unit of its own."""
    curve = made.hypervolume
    if not curve:
        return None
    unit, spent = figures.device_time(curve, made.device)
    return {"unit": unit, "spent": spent, "hypervolume": [record["hypervolume"] for record in curve]}


def _rungs(made: Contents, trials: Sequence[Record], place: Mapping[int, int]) -> list[dict[str, Any]]:
    """Accuracy at each rung and at the end, of the trials that trained beyond it to their end."""
    whole = {int(trial["trial"]) for trial in trials if trial["state"] == "completed"}
    curves: dict[int, list[tuple[float, float]]] = {}
    for record in made.curves:
        if record["trial"] in whole and record["accuracy_val"] is not None:
            curves.setdefault(int(record["trial"]), []).append((record["epoch"], record["accuracy_val"]))
    found = []
    for rung in made.rungs:
        passed = rank_agreement.early_and_final(curves, rung["epochs"])
        if passed:
            early, final = zip(*passed.values(), strict=True)
            at = {"places": [place[trial] for trial in passed], "early": early, "final": final}
            found.append({"epochs": rung["epochs"], **at})
    return found


def _leaves(trials: Sequence[Record], importance: Sequence[Record]) -> dict[str, list[Any]]:
    """The leaves of the configuration that differ between trials, the most important ones first, and their values."""
    configs = [dict(flat(trial["config"])) for trial in trials]
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [config.get(name) for config in configs] for name in names}
    varied = [name for name in names if len({json.dumps(v, default=str) for v in values[name] if v is not None}) > 1]
    weight: dict[str, float] = {}
    for record in importance:
        weight[record["parameter"]] = max(weight.get(record["parameter"], 0.0), record["importance"])
    ranked = sorted(varied, key=lambda name: (-weight.get(name, 0.0), varied.index(name)))[:MAX_LEAVES]
    return {name: values[name] for name in varied if name in ranked}


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted path; lists are leaves."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flat(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def as_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: nothing in it ends the element or begins a comment."""
    text = json.dumps(_shown(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _shown(value: Any) -> Any:
    """Text without control characters; figures with as many digits as a picture can show, None for NaN and infinity."""
    if isinstance(value, str):
        return tables.plain(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _shown(item) for name, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value
