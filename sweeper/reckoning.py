"""Forecast and fact of a run side by side, by stage.

    results/<name>/<run id>/forecast.json      the forecast from before the run's first stage, and what it came to

A run that goes on keeps the forecast with which it began. What was in the store by then costs nothing on either side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sweeper.findings import STAGES, TOTAL, forecast_and_fact
from sweeper.forecast import Forecast
from sweeper.plan import Artifact
from sweeper.results import RunFolder
from sweeper.tables import TextTable


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
    if folder.read_forecast():
        return False
    stages: dict[str, dict[str, float | None]] = {
        stage: {"seconds": expected.seconds.get(stage, 0.0), "wall_s": expected.wall.get(stage, 0.0)}
        for stage in STAGES
    }
    stages[TOTAL] = {"seconds": expected.total, "wall_s": expected.wall_s}
    told: dict[str, Any] = {"device": expected.place.slot.device, "lanes": expected.lanes, "basis": expected.basis}
    told |= {"unknown": list(expected.unknown), "missing": [item.key for item in missing], "forecast": stages}
    folder.write_forecast(told)
    return True


def end(folder: RunFolder, clock: Clock, *, is_whole: bool) -> TextTable | None:
    """Write down what it came to, and lay both out; None where no forecast was kept.

    Args:
        is_whole: this session did all of the run, so that the clock says something.
    """
    kept = folder.read_forecast()
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
    folder.write_forecast({**kept, "fact": facts})
    return forecast_and_fact(kept["forecast"], facts)
