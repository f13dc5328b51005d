"""A cluster of three nodes that loses one in each stage of a sweep, and one that is told so before."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clusters import lane_workers, running
from command_line import environment, read_to
from harness import TRIAL, Row, Sweep

pytestmark = pytest.mark.slow
# The driver and the mailbox are on the head.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
def tell(node):
    return {"id": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}
print(json.dumps({"address": cluster.address, "nodes": [tell(node) for node in nodes]}), flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[int(line)], allow_graceful=False)
    print(json.dumps({"removed": int(line)}), flush=True)
cluster.shutdown()
"""
STAGES = {
    "images": r"^images: \d",
    "teachers": r"^teachers?\b.*: \d|^teachers?: started",
    "synthetic images": r"^synthetic images.*: \d",
    "targets": r"^targets.*: \d",
    "search": r"^\[1/",
    "finalists": r"^finalists: \d",
}


@dataclass
class ThreeNodes:
    """Two of them, 0 and 1, can be removed."""

    process: subprocess.Popen[str]
    address: str
    nodes: list[dict[str, Any]]

    def remove(self, number: int) -> None:
        """As if its power was cut."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert next(line for line in self.process.stdout if line.startswith('{"removed"'))

    def announce(self, number: int, grace_s: int) -> None:
        """What a cloud's notice of a spot machine's end is to Ray."""
        command = ["drain-node", "--address", self.address, "--node-id", self.nodes[number]["id"]]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        deadline = ["--deadline-remaining-seconds", str(grace_s)]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command, *reason, *deadline],
            env=environment(),
            check=True,
            capture_output=True,
        )

    def has_lane(self, number: int) -> bool:
        return self.nodes[number]["raylet"] in lane_workers().values()


@contextmanager
def three_nodes(log: Path) -> Iterator[ThreeNodes]:
    with running(CLUSTER, log) as (process, found):
        yield ThreeNodes(process, **found)


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
    with three_nodes(tmp_path / "cluster.log") as cluster:
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
    with three_nodes(tmp_path / "cluster.log") as cluster:
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
