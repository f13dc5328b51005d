"""A cluster of three nodes that loses one in each stage of a sweep, and one that is told so before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clusters import nodes
from command_line import read_to
from harness import TRIAL, Row, Sweep

pytestmark = pytest.mark.slow
STAGES = {
    "images": r"^images: \d",
    "teachers": r"^teachers?\b.*: \d|^teachers?: started",
    "synthetic images": r"^synthetic images.*: \d",
    "targets": r"^targets.*: \d",
    "search": r"^\[1/",
    "finalists": r"^finalists: \d",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_is_lost(
    stage: str,
    undisturbed: Mapping[str, Any],
    row: Callable[[str], Row],
    tmp_path: Path,
    generator_folder: Path,
) -> None:
    line = row(f"one node of three lost: {stage}")
    sweep = Sweep.make(tmp_path, generator_folder)
    with nodes(tmp_path / "cluster.log", 2) as cluster:
        process = sweep.start("--address", cluster.address)
        output = read_to(process, STAGES[stage])
        time.sleep(1.0)  # into the stage
        line.tried, line.lost_s = 1, [max(0.0, time.time() - sweep.last_written())]
        cluster.remove(0)
        out, err = process.communicate(timeout=600)
    assert (err, process.returncode) == ("", 0), output + out
    assert sweep.outcome() == undisturbed
    line.is_equal = True


def test_a_node_that_is_announced_to_go(row: Callable[[str], Row], tmp_path: Path, generator_folder: Path) -> None:
    """Its lane saves its trial after each epoch from then on, and the trial goes on elsewhere with what was saved."""
    line = row("preemption notice, then the node is lost")
    recipe = {**TRIAL["train"], "epochs": 240}
    search = {"trials": 3, "startup": 3, "objectives": {"accuracy": "max"}, "scheduler": {"kind": "fifo"}}
    few = {"count": 1, "seeds": 1, "ablate": False}
    sections = {"trial": {**TRIAL, "train": recipe}, "search": search, "finalists": few}
    sweep = Sweep.make(tmp_path, generator_folder, **sections)
    with nodes(tmp_path / "cluster.log", 2) as cluster:
        process = sweep.start("--address", cluster.address)
        output = read_to(process, r"^teacher vit:")
        checkpoints = sweep.results / ".work" / "checkpoints"
        while not (cluster.has_lane(0) and list(checkpoints.glob("*.pt"))):
            assert process.poll() is None
            time.sleep(0.2)
        cluster.announce(0, grace_s=60)
        time.sleep(8)  # Ray tells its workers every 5 s, and they look every 2 s
        saved: set[int] = set()
        for _ in range(50):
            with suppress(FileNotFoundError):  # a trial has ended
                saved |= {path.stat().st_mtime_ns for path in checkpoints.glob("*.pt")}
            time.sleep(0.1)
        line.tried, line.lost_s = 1, [max(0.0, time.time() - sweep.last_written())]
        cluster.remove(0)
        out, err = process.communicate(timeout=600)
    assert (err, process.returncode) == ("", 0), output + out
    assert len(saved) >= 4, "in five seconds it was saved more often than every five seconds"
    assert [trial["state"] for trial in sweep.outcome()["trials"]] == ["completed"] * 3
    line.is_equal = True
