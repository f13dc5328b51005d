"""The table at the end of a run of the faults: what was done to a sweep, how often, what was lost, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import Row, Sweep

ROWS: list[Row] = []


@pytest.fixture
def row() -> Callable[[str], Row]:
    """Opens a line of the table."""

    def begin(fault: str) -> Row:
        ROWS.append(Row(fault))
        return ROWS[-1]

    return begin


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, generator_folder: Path) -> Sweep:
    """The sweep when nothing happened to it."""
    sweep = Sweep.make(tmp_path_factory.mktemp("undisturbed"), generator_folder)
    sweep.run()
    return sweep


@pytest.fixture(scope="session")
def undisturbed(finished: Sweep) -> Mapping[str, Any]:
    """What the sweep comes to when nothing happens to it."""
    return finished.outcome()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ROWS:
        terminalreporter.write_line(f"\n{'fault':<58}{'tried':>6}  {'mean lost':>8} {'most':>8}  {'equal':>6}")
        for row in ROWS:
            terminalreporter.write_line(row.text())
