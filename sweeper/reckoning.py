"""Forecast and fact of a run side by side, by stage.

    results/<name>/<run id>/forecast.json      the forecast from before the run's first stage, and what it came to

A run that goes on keeps the forecast with which it began. What was in the store by then costs nothing on either side.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sweeper.files import write_atomically
from sweeper.forecast import TITLES, Forecast
from sweeper.plan import Artifact
from sweeper.results import RunFolder, to_json
from sweeper.tables import TextTable, duration

FILE = "forecast.json"
STAGES = ("images", "adapt", "synthetic", "targets", "search", "finalists")
TOTAL = "total"


class Clock:
    """What this session's stages take on the clock, until now."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.wall: dict[str, float] = {}

    @contextmanager
    def around(self, name: str, manager: AbstractContextManager[Any] = nullcontext()) -> Iterator[Any]:  # noqa: B008
        """The manager's block, timed under the first word of its name."""
        kind, began = name.split()[0], time.monotonic()
        try:
            with manager as entered:
                yield entered
        finally:
            self.wall[kind] = self.wall.get(kind, 0.0) + time.monotonic() - began


def begin(folder: RunFolder, expected: Forecast, missing: Sequence[Artifact]) -> bool:
    """Keep the forecast of a run that begins; False for one that goes on, whose forecast is there."""
    path = folder.path / FILE
    if _read(path):
        return False
    stages: dict[str, dict[str, float | None]] = {
        stage: {"seconds": expected.seconds.get(stage, 0.0), "wall_s": expected.wall.get(stage, 0.0)}
        for stage in STAGES
    }
    stages[TOTAL] = {"seconds": expected.total, "wall_s": expected.wall_s}
    told: dict[str, Any] = {"device": expected.place.slot.device, "lanes": expected.lanes, "basis": expected.basis}
    told |= {"unknown": list(expected.unknown), "missing": [item.key for item in missing], "forecast": stages}
    write_atomically(path, to_json(told))
    return True


def end(folder: RunFolder, clock: Clock, *, is_whole: bool) -> TextTable | None:
    """Write down what it came to, and lay both out; None where no forecast was kept.

    Args:
        is_whole: this session did all of the run, so that the clock says something.
    """
    path = folder.path / FILE
    kept = _read(path)
    if not kept:
        return None
    made = set(kept["missing"])
    spent = dict.fromkeys(STAGES, 0.0)
    for charge in folder.read_ledger():
        stage = charge["stage"]
        if stage in ("train", "pretrain"):
            stage = "search" if charge["key"].startswith("trial-") else "finalists"
        elif charge["key"] not in made:
            continue
        spent[stage] = spent.get(stage, 0.0) + charge["seconds"]
    facts: dict[str, dict[str, float | None]] = {
        stage: {"seconds": seconds, "wall_s": clock.wall.get(stage, 0.0) if is_whole else None}
        for stage, seconds in spent.items()
    }
    wall = time.monotonic() - clock.began if is_whole else None
    facts[TOTAL] = {"seconds": math.fsum(spent.values()), "wall_s": wall}
    write_atomically(path, to_json({**kept, "fact": facts}))
    return table(kept["forecast"], facts)


def table(expected: Mapping[str, Any], facts: Mapping[str, Any]) -> TextTable:
    """A line a stage that has anything on either side, and the total."""
    rows = []
    for stage, fact in facts.items():
        told = expected.get(stage, {"seconds": 0.0, "wall_s": 0.0})
        if stage != TOTAL and not (told["seconds"] or fact["seconds"]):
            continue
        off = f"{100 * (told['seconds'] / fact['seconds'] - 1):+.0f}%" if fact["seconds"] else ""
        times = (told["seconds"], fact["seconds"], off, told["wall_s"], fact["wall_s"])
        rows.append((TITLES.get(stage, stage), *(t if isinstance(t, str) else _text(t) for t in times)))
    figures = ("forecast", "fact", "off by", "on the clock", "fact ")
    return TextTable(("device time", *figures), tuple(rows), frozenset(figures))


def _text(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _read(path: Path) -> dict[str, Any]:
    """What is kept; empty where there is none, or something else lies there."""
    try:
        found = json.loads(path.read_bytes())
        found["missing"], found["forecast"][TOTAL]["seconds"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return dict(found)
