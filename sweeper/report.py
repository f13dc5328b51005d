"""A run as one HTML page.

The page holds everything in one file (styles and pictures inlined, no script, no network), follows the reader's light
or dark scheme, and escapes every text: class names and messages come from the user's data. It is written from records
(`rows`) and depends on nothing else: equal records give equal bytes.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from sweeper import findings, tables
from sweeper.tables import Record

NUM_LISTED = 30
SMALLEST_SHARE = 0.01
# Facts with these names are said where they belong instead of in the head.
WINNERS_CURSE = "winner's curse"
WHAT_MATTERED = "what mattered"
_MATTERS_FOR = {"accuracy": "For accuracy", "gpu_hours": "For cost"}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a page is made of.

    Attributes:
        title: `<name>/<run id>`.
        facts: what the reader should know of the run, as name and text. `WINNERS_CURSE` is said below the front, and
            `WHAT_MATTERED` (why no importance could be given, say) in the section of that name.
        pareto, ablation, trials, ledger: records of the files of those names.
        importance, hypervolume, rungs: likewise; empty in runs that were written before they existed.
        space: the resolved space file.
        environment: as in environment.json.
        png: the picture of the front.
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
    importance: Sequence[Record] = ()
    hypervolume: Sequence[Record] = ()
    rungs: Sequence[Record] = ()
    progress_png: bytes = b""


def html(contents: Contents) -> bytes:
    """The page, in UTF-8."""
    import jinja2

    template = resources.files("sweeper").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = tables.plain
    facts = {tables.plain(name): tables.plain(_fact(value)) for name, value in contents.facts.items()}
    page = environment.from_string(template).render(
        title=tables.plain(contents.title),
        winners_curse=facts.pop(WINNERS_CURSE, ""),
        what_mattered=facts.pop(WHAT_MATTERED, ""),
        facts=facts,
        pareto=tables.pareto(contents.pareto),
        ablation=tables.ablation(contents.ablation) if contents.ablation else None,
        ledger=ledger_summary(contents.ledger),
        failed=[trial for trial in contents.trials if trial["state"] == "failed"],
        states=", ".join(
            f"{count} {state}" for state, count in sorted(Counter(t["state"] for t in contents.trials).items())
        ),
        space=tables.plain(yaml.safe_dump(contents.space, sort_keys=False, allow_unicode=True)),
        command=tables.plain(contents.environment.get("command", "")),
        environment=tables.plain(json.dumps(contents.environment, indent=2, ensure_ascii=False, sort_keys=True)),
        png=base64.b64encode(contents.png).decode("ascii"),
        importance=importance_shares(contents.importance),
        rungs=findings.rungs(contents.rungs) if contents.rungs else None,
        rungs_say=findings.rungs_sentence(contents.rungs) if contents.rungs else "",
        progress_says=progress_sentence(contents.hypervolume, device_of(contents)) if contents.hypervolume else "",
        progress_png=base64.b64encode(contents.progress_png).decode("ascii"),
    )
    return (page + "\n").encode("utf-8", "replace")


def _fact(value: object) -> str:
    """A text as it is; of a list, such as a dataset's classes, the first names and the number of the others."""
    if not isinstance(value, (list, tuple)):
        return str(value)
    shown = ", ".join(map(str, value[:NUM_LISTED]))
    return shown if len(value) <= NUM_LISTED else f"{shown} and {len(value) - NUM_LISTED} more"


def device_of(contents: Contents) -> str:
    """The device that the run's times were taken on."""
    return str(next((record["device"] for record in [*contents.pareto, *contents.trials]), "cpu"))


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


def ledger_summary(charges: Sequence[Record]) -> tables.TextTable:
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
    return tables.TextTable(headers=headers, rows=tuple(rows), right=frozenset(headers[2:]))
