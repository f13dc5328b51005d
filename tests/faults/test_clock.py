"""The clock of a driver that is put forward or back by an hour in the middle of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import REPOSITORY
from harness import SEARCH, TRIALS, Row, Sweep

pytestmark = pytest.mark.slow
HOUR_S = 3600
# Read by the driver alone, which takes it out of the environment: Ray's own processes agree on one clock.
JUMPS = """
import operator, os, time

class Clock:
    def __init__(self, name, unit):
        self.name, self.real, self.unit = name, getattr(time, name), unit
    def __call__(self):
        return self.real() + (by * self.unit if time.monotonic() >= at else 0)
    def __reduce__(self):  # Ray Data sends functions that hold it: there it is the clock of that process
        return operator.attrgetter(self.name), (time,)

if "JUMP_AT" in os.environ:
    at, by = float(os.environ.pop("JUMP_AT")), int(os.environ.pop("JUMP_BY"))
    time.time, time.time_ns = Clock("time", 1), Clock("time_ns", 10**9)
"""
AFTER_S = 20  # in the search, or in a stage before it on a loaded machine


@pytest.mark.parametrize("by", [HOUR_S, -HOUR_S])
def test_a_clock_that_jumps(
    by: int, undisturbed: Mapping[str, Any], row: Callable[[str], Row], tmp_path: Path, generator_folder: Path
) -> None:
    """A budget of half an hour on the clock is neither over at once nor prolonged: the trials are what ends it."""
    line = row(f"clock put {'forward' if by > 0 else 'back'} by an hour, {AFTER_S} s after the start")
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(JUMPS)
    sweep = Sweep.make(
        tmp_path / "sweep",
        generator_folder,
        search={**SEARCH, "wall_hours": 0.5},
        more={
            "PYTHONPATH": f"{tmp_path / 'clock'}:{REPOSITORY}",
            "JUMP_AT": str(time.monotonic() + AFTER_S),
            "JUMP_BY": str(by),
        },
    )
    done = sweep.run()
    line.tried, line.lost_s = 1, [0.0]
    assert f"search: ended by {TRIALS} trials" in done.stdout
    assert sweep.outcome() == undisturbed
    line.is_equal = True
