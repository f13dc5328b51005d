"""What a run's page says in tables and sentences: the answer, what was tried, teachers, spending, mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sweeper import figures, page_data, tables
from sweeper.page_data import Contents
from sweeper.tables import Record, TextTable

SMALLEST_SHARE = 0.01
MAX_VALUES = 20  # of one choice
STAGES = {"adapt": "teachers", "synthetic": "synthetic images", "targets": "targets", "images": "images"}
GROUP_TITLES = {"teacher": "teacher", "student": "student", "loss": "loss", "synthetic_ratio": "synthetic images"}
_MATTERS_FOR = {"accuracy": "For accuracy", "gpu_hours": "For cost"}


def answer(made: Contents) -> str:
    """The most accurate row of the front, and the cheapest one that its spread does not tell from it."""
    rows = [record for record in made.pareto if record["accuracy_test"] is not None]
    if not rows:
        return ""
    best = rows[0]
    said = f"The most accurate student: {_row_in_words(best, made)}."
    least = best["accuracy_test"] - (best["accuracy_test_std"] or 0.0)
    alike = [row for row in rows if row["accuracy_test"] >= least and row["gpu_hours"] < 0.9 * best["gpu_hours"]]
    if alike:
        cheap = min(alike, key=lambda row: row["gpu_hours"])
        said += f" Within its spread and cheaper: {_row_in_words(cheap, made)}."
    return tables.plain(said)


def _row_in_words(row: Record, made: Contents) -> str:
    unit, factor = page_data.cost_unit(made)
    teacher = "from scratch" if row["teacher"] == "none" else f"taught by {row['teacher']}"
    images = f", {tables.ratio_text(row['synthetic_ratio'])} synthetic images" if row["synthetic_ratio"] else ""
    test = tables.accuracy_text(row["accuracy_test"], row["accuracy_test_std"])
    cost = tables.significant(row["gpu_hours"] * factor, 3)
    return (
        f"{row['student']} {teacher} with {row['loss']}{images} (row {row['rank']}): {test} on test for {cost} {unit}"
    )


def choices(trials: Sequence[Record]) -> list[tuple[str, str]]:
    """What was tried: each thing that a trial chooses, and its values."""
    found = []
    for name, title in GROUP_TITLES.items():
        values = sorted({trial[name] for trial in trials}, key=lambda value: (isinstance(value, str), value))
        texts = [tables.ratio_text(value) if name == "synthetic_ratio" else str(value) for value in values]
        rest = [f"and {len(texts) - MAX_VALUES} more"] if len(texts) > MAX_VALUES else []
        found.append((title, tables.plain(", ".join([*texts[:MAX_VALUES], *rest]))))
    return found if trials else []


def teachers(made: Contents) -> TextTable:
    """One line a teacher: how good it is, and what it and its cached targets took."""
    seconds = [r[name] or 0.0 for r in made.teachers for name in ("seconds_adapt", "seconds_targets")]
    unit, factor = tables.cost_unit([value / 3600 for value in seconds], made.device)
    rows = []
    for r in made.teachers:
        way = "as it is" if r["adapt"] == "none" else r["adapt"].replace("_", " ")
        costs = [
            tables.significant((r[name] or 0.0) / 3600 * factor, 3) for name in ("seconds_adapt", "seconds_targets")
        ]
        accuracy = tables.accuracy_text(r["accuracy_val"])
        rows.append(
            (tables.plain(r["teacher"]), tables.plain(r["model"]), way, accuracy, *costs, f"{r['views_cached']:,}")
        )
    figures_ = ("val", f"adapting, {unit}", f"targets, {unit}", "views cached")
    return TextTable(
        headers=("teacher", "model", "adapted by", *figures_),
        rows=tuple(rows),
        right=frozenset(figures_),
        caption="val: accuracy on validation, after adapting. Targets: its outputs for all views of all images.",
    )


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar; `number` is its place among the stages, which gives its colour."""

    name: str
    share: float
    text: str
    number: int


@dataclass(frozen=True)
class Bar:
    """A stacked bar; its parts' shares are of the longest bar of the picture."""

    title: str
    text: str
    parts: tuple[Part, ...]


def spending(made: Contents) -> list[Bar]:
    """Device time by stage, and beside it what the same trainings would have taken with the teachers in the loop."""
    spent = _by_stage(made.ledger)
    if not math.fsum(spent.values()):
        return []
    bars = {"As it was, targets cached": spent}
    if (online := online_seconds(made.teachers)) is not None and spent.get("targets"):
        bars["The same trainings, teachers online"] = {**spent, "targets": online}
    longest = max(math.fsum(bar.values()) for bar in bars.values())
    order = list(spent)
    return [
        Bar(
            title,
            tables.duration(math.fsum(bar.values())),
            tuple(Part(name, s / longest, tables.duration(s), order.index(name)) for name, s in bar.items() if s > 0),
        )
        for title, bar in bars.items()
    ]


def _by_stage(charges: Sequence[Record]) -> dict[str, float]:
    """Seconds, trainings of the search and of the finalists apart."""
    found: dict[str, list[float]] = {name: [] for name in [*STAGES.values(), "search", "finalists"]}
    for charge in charges:
        name = STAGES.get(charge["stage"]) or ("finalists" if str(charge["key"]).startswith("final-") else "search")
        found[name].append(charge["seconds"])
    return {name: math.fsum(seconds) for name, seconds in found.items()}


def online_seconds(teachers: Sequence[Record]) -> float | None:
    """Device-seconds of teachers that see each image whenever a training reads it, at the cache's own speed a view.

    None where nothing was read from a cache.
    """
    known = [r for r in teachers if r["views_cached"] and r["views_read"]]
    return math.fsum(r["views_read"] * r["seconds_targets"] / r["views_cached"] for r in known) if known else None


def cache_sentence(made: Contents) -> str:
    """What caching the targets saved against asking the teachers again at each step."""
    online = online_seconds(made.teachers)
    if online is None:
        return ""
    cached = math.fsum(r["seconds_targets"] for r in made.teachers)
    read, views = (sum(r[name] for r in made.teachers) for name in ("views_read", "views_cached"))
    one, other, saved = map(tables.duration, (online, cached, abs(online - cached)))
    verb = "saved" if online >= cached else "cost"
    more = "" if online >= cached else " more than it saved"
    return (
        f"Trainings asked a teacher {read:,} times; the cache holds {views:,} views and took {other}. Asked online, "
        f"at the same seconds a view, the teachers would have taken {one}: the cache {verb} {saved}{more} of device "
        "time. An estimate: each image of a batch counts as one pass of the teacher."
    )


def ledger(charges: Sequence[Record]) -> TextTable:
    """Device time by stage and device, as measured: what the run really spent."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for charge in charges:
        groups.setdefault((charge["stage"], charge["device"]), []).append(charge)
    spent = {key: math.fsum(charge["seconds"] for charge in group) for key, group in groups.items()}
    rows = []
    for (stage, device), group in groups.items():
        unit, factor = tables.cost_unit([spent[stage, device] / 3600], device)
        time = f"{tables.significant(spent[stage, device] / 3600 * factor)} {unit}"
        rows.append((stage, device, str(len(group)), f"{sum(int(charge['units']) for charge in group):,}", time))
    headers = ("stage", "device", "charges", "units", "device time")
    return TextTable(headers=headers, rows=tuple(rows), right=frozenset(headers[2:]))


def slices(made: Contents) -> list[TextTable]:
    """For each of teacher, student, loss and ratio: how trials with each of its values did."""
    trials = [record for record in made.trials if figures.is_shown(record)]
    unit, factor = page_data.cost_unit(made)
    found = []
    for name, title in GROUP_TITLES.items():
        groups: dict[object, list[Record]] = {}
        for trial in trials:
            groups.setdefault(trial[name], []).append(trial)
        rows = []
        for value, group in sorted(groups.items(), key=lambda item: -max(t["accuracy_val"] for t in item[1])):
            scores = [t["accuracy_val"] for t in group]
            text = tables.ratio_text(value) if name == "synthetic_ratio" else tables.plain(value)  # type: ignore[arg-type]
            cost = tables.significant(median(t["gpu_hours"] for t in group) * factor, 3)
            accuracies = (tables.accuracy_text(max(scores)), tables.accuracy_text(median(scores)))
            rows.append((text, str(len(group)), *accuracies, cost))
        figures_ = ("trials", "best val", "median val", f"median {unit}")
        found.append(TextTable((title, *figures_), tuple(rows), frozenset(figures_)))
    return found


@dataclass(frozen=True)
class Shares:
    """One objective's importances for the page: (parameter, share, trials that had it), the small ones only counted."""

    title: str
    rows: tuple[tuple[str, float, int], ...]
    num_small: int


def importance_shares(records: Sequence[Record]) -> list[Shares]:
    """Records of importance.parquet, an objective at a time, parameters of less than `SMALLEST_SHARE` left out."""
    found = []
    for objective in dict.fromkeys(str(record["objective"]) for record in records):
        own = [record for record in records if record["objective"] == objective]
        rows = tuple(
            (tables.plain(r["parameter"]), float(r["importance"]), int(r["trials"]))
            for r in own
            if r["importance"] >= SMALLEST_SHARE
        )
        found.append(Shares(_MATTERS_FOR.get(objective, objective), rows, len(own) - len(rows)))
    return found


def progress_sentence(curve: Sequence[Record], device: str) -> str:
    """What the curve of the hypervolume comes to, and when most of it was there."""
    final, end = curve[-1]["hypervolume"], curve[-1]["seconds"] / 3600
    if not final > 0:
        return "No trial was better than chance."
    most = next(record["seconds"] for record in curve if record["hypervolume"] >= 0.9 * final) / 3600
    unit, factor = tables.cost_unit([end], device)
    spent, whole = (tables.significant(hours * factor, 3) for hours in (most, end))
    return f"Hypervolume {final:.3f} at the end; nine tenths of it were there after {spent} of {whole} {unit}."
