"""What a run tells besides its front: what mattered, whether stopping was fair, whether the forecast held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.tables import STAGE_TITLES, Record, TextTable, duration, percent, plain

LEAST_SHARE = 0.05  # of an importance that is worth a word
STAGES = ("images", "adapt", "synthetic", "targets", "search", "finalists")  # of a forecast
TOTAL = "total"  # its last line
FEW_TRIALS = 8  # over 7, chance alone gives a rank correlation above 0.57 one time in ten


def rungs(records: Sequence[Record]) -> TextTable:
    """One line a rung: how well accuracy there ranked the trials that went on to their end."""
    figures = [f"{r['spearman']:.2f}" if _is_told(r) else "too few to tell" for r in records]
    rows = [(str(r["rung"]), str(r["epochs"]), str(r["trials"]), rho) for r, rho in zip(records, figures, strict=True)]
    headers = ("rung", "epoch", "trials", "Spearman")
    caption = "Spearman: correlation of the ranks at the rung with the final ones; 1 is the same order, 0 is chance."
    return TextTable(headers=headers, rows=tuple(rows), right=frozenset(headers), caption=caption)


def rungs_sentence(records: Sequence[Record]) -> str:
    """Whether early stopping could be trusted, in one sentence; what to do about it in a second where it could not."""
    told = [r for r in records if _is_told(r)]
    if not told:
        most = max((int(r["trials"]) for r in records), default=0)
        return (
            "Whether early accuracy ranked trials like their final accuracy can not be told: "
            f"at most {most} trial{'' if most == 1 else 's'} passed a rung and trained to the end; "
            f"{FEW_TRIALS} are needed."
        )
    worst = min(r["spearman"] for r in told)
    how = "like" if worst >= 0.7 else "only roughly like" if worst >= 0.4 else "unlike"
    found = ", ".join(f"{r['spearman']:.2f} over {r['trials']} trials at epoch {r['epochs']}" for r in told)
    dark = [str(r["epochs"]) for r in records if not _is_told(r)]
    few = f" (too few to tell at epoch {', '.join(dark)})" if dark else ""
    advice = "" if worst >= 0.4 else " Good trials may have been stopped: raise `grace` or `keep` of the scheduler."
    return f"Early accuracy ranked trials {how} their final accuracy: Spearman {found}{few}.{advice}"


def importance_lines(records: Sequence[Record], most: int = 4) -> list[str]:
    """What mattered for each objective, the `most` important leaves first: `accuracy: train.lr 61%, teacher 22%`."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["importance"] >= LEAST_SHARE:
            found.setdefault(record["objective"], []).append(record)
    lines = []
    for objective, own in found.items():
        first = sorted(own, key=lambda r: -r["importance"])[:most]
        shares = ", ".join(f"{plain(r['parameter'])} {percent(r['importance'])}" for r in first)
        lines.append(f"{plain(objective)}: {shares}")
    return lines


def forecast_and_fact(expected: Mapping[str, Any], facts: Mapping[str, Any]) -> TextTable:
    """A line a stage that has anything on either side, and the total; from forecast.json."""
    rows = []
    for stage in [*(name for name in facts if name not in (*STAGES, TOTAL)), *STAGES, TOTAL]:
        fact = facts.get(stage, {"seconds": 0.0, "wall_s": 0.0})
        told = expected.get(stage, {"seconds": 0.0, "wall_s": 0.0})
        if stage != TOTAL and not (told["seconds"] or fact["seconds"]):
            continue
        off = f"{100 * (told['seconds'] / fact['seconds'] - 1):+.0f}%" if fact["seconds"] else ""
        times = (told["seconds"], fact["seconds"], off, told["wall_s"], fact["wall_s"])
        rows.append((STAGE_TITLES.get(stage, stage), *(t if isinstance(t, str) else _time(t) for t in times)))
    figures = ("forecast", "fact", "off by", "on the clock", "fact ")
    return TextTable(("device time", *figures), tuple(rows), frozenset(figures))


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _is_told(rung: Record) -> bool:
    rho = rung["spearman"]
    return rho is not None and math.isfinite(rho) and rung["trials"] >= FEW_TRIALS
