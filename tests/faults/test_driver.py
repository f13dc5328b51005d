"""A driver that is killed again and again."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import Row, Sweep, kill_after

KILLS = int(os.environ.get("SWEEPER_FAULT_KILLS", "50"))
LIFETIME_S = (1.0, 45.0)  # from before Ray is up to after a whole sweep


@pytest.mark.slow  # a quarter of an hour
def test_a_driver_that_is_killed_at_random_moments(
    undisturbed: Mapping[str, Any], row: Callable[[str], Row], tmp_path: Path, generator_folder: Path
) -> None:
    """From an empty store on; each time that a sweep comes to its end, it is compared, and the next one begins."""
    line, draw, compared = row("driver killed (SIGKILL) at a random moment"), random.Random(0), 0
    while line.tried < KILLS:
        sweep = Sweep.make(tmp_path / f"sweep-{compared}", generator_folder)
        while line.tried < KILLS and kill_after(sweep, draw.uniform(*LIFETIME_S), line):
            pass
        if not sweep.is_finished:
            sweep.run()
        assert sweep.outcome() == undisturbed
        assert not list(sweep.results.glob(".work/**/*")), "nothing is left lying about"
        compared += 1
    assert compared >= 1
    line.is_equal = True
