"""Waiting for nodes, with words and with an end; and lanes that follow them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from command_line import wait_until
from ray.util import placement_group_table
from small_sweep import Built

from sweeper import lane, nodes
from sweeper.config import ResourceConfig
from sweeper.errors import RunFailed
from sweeper.lane import LanePool
from sweeper.nodes import Shortage
from sweeper.slots import LanePlan, elastic_lanes

SOON_S = 60.0
GPU_LANE = LanePlan(4, workers=1, cpus=1, gpus=0.5, is_elastic=True)
HEAD = {"CPU": 4.0, "memory": 1e9}
LAUNCHERS_FILE = """
available_node_types:
  head: {resources: {CPU: 4}}
  gpu_l4: {resources: {CPU: 4, GPU: 1}, max_workers: 8}
head_node_type: head
max_workers: 8
"""


class TestShortage:
    def told(self, at: list[float], minutes: float = 2) -> list[str]:
        lines: list[str] = []
        clock = iter(at)
        shortage = Shortage(lines.append, minutes, lambda: next(clock))
        for _ in at:
            shortage.of("a trial", GPU_LANE, [HEAD, HEAD])
        return lines

    def test_is_told_once_and_not_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert self.told([0, 19]) == []
        assert self.told([0, 20, 40, 60]) == [
            "a trial needs 1 CPU and 0.5 GPU, and no node has room for it: 2 nodes of 4 CPU; waiting up to 2 minutes; "
            "nodes that join are taken up"
        ]

    def test_names_what_an_autoscaler_may_add(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / nodes.LAUNCHERS_FILE).write_text(LAUNCHERS_FILE)
        assert self.told([0, 30])[0].endswith("; the autoscaler may add one of 4 CPU and 1 GPU")
        (tmp_path / nodes.LAUNCHERS_FILE).write_text("{")
        assert nodes.addable() == []

    def test_ends_with_what_was_waited_for(self) -> None:
        message = r"no node has room for it: 2 nodes of 4 CPU; waited 2 minutes \(resources.wait_minutes\)"
        with pytest.raises(RunFailed, match=message):
            self.told([0, 119, 120])

    def test_is_over_when_nodes_join(self) -> None:
        lines: list[str] = []
        clock = iter([0.0, 30.0, 1000.0, 1001.0])
        shortage = Shortage(lines.append, 2, lambda: next(clock))
        shortage.of("a trial", GPU_LANE, [])
        shortage.of("a trial", GPU_LANE, [])
        assert "no node has room for it: none;" in lines[0]
        shortage.is_over()
        shortage.of("a trial", GPU_LANE, [])
        shortage.of("a trial", GPU_LANE, [])
        assert lines[1:] == ["nodes have joined: going on"]


def test_what_never_fits_is_not_waited_for_without_end(pool: LanePool) -> None:
    """On the session's own machine: no stage can hang on a resource that nobody has."""
    with pytest.raises(RunFailed, match=r"a worker needs 1 CPU and 3 GPU, and no node has room for it: 1 node of "):
        nodes.wait_for("a worker", LanePlan(1, 1, 1, 3.0), 0.0, print)
    nodes.wait_for("a worker", LanePlan(1, 1, 1, 0.0), 0.0, print)


class Hand:
    """In the place of a lane's Ray Train run: it takes jobs, and finishes them when it may."""

    def __init__(self, pool: LanePool, number: int, may: threading.Event) -> None:
        self.mailbox, self.name, self.may = pool.mailbox, str(number), may

    def fit(self) -> None:
        incarnation = ray.get(self.mailbox.enlist.remote(self.name, 0, ["node"]))
        while (taken := ray.get(self.mailbox.take.remote(self.name, incarnation))) is not None:
            self.may.wait(60)
            ray.get(self.mailbox.finish.remote(self.name, taken[0], {"state": "completed"}))


def groups(state: str) -> int:
    return sum(group["state"] == state for group in placement_group_table().values())


def test_room_that_is_asked_for_is_held_by_nobody(pool: LanePool) -> None:
    """A pending placement group is what an autoscaler sees; one that has found its room is in a lane's way."""
    demand, large = nodes.Demand(), LanePlan(9, 1, 1, 3.0)
    pending, removed, created = groups("PENDING"), groups("REMOVED"), groups("CREATED")
    demand.set(large, 3)
    assert groups("PENDING") == pending + 3
    demand.set(large, 1)
    assert (groups("PENDING"), groups("REMOVED")) == (pending + 1, removed + 2)
    demand.set(LanePlan(1, 1, 1, 0.0), 2)  # for which there is room
    wait_until(lambda: groups("CREATED") == created + 1, SOON_S)
    demand.set(large, 1)
    assert (groups("PENDING"), groups("CREATED")) == (pending + 1, created)
    demand.set(large, 0)
    assert (groups("PENDING"), groups("CREATED")) == (pending, created)


def test_lanes_are_as_many_as_the_drivers_machine_has_memory_for(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoscaler is asked for no node whose lanes could not be held."""
    asked: list[int] = []
    lines: list[str] = []
    monkeypatch.setattr(lane.nodes, "live", lambda: {"head": {"CPU": 0.0}, "node": {"CPU": 64.0}})
    monkeypatch.setattr(lane.nodes.Demand, "set", lambda self, plan, count: asked.append(count))
    plan = elastic_lanes(ResourceConfig(), has_gpus=False, most=10, head_memory=3.8e9)
    pool = LanePool(plan, built.store.uri, tmp_path, shortage=Shortage(lines.append, 2))
    monkeypatch.setattr(pool, "_trainer", lambda number: Hand(pool, number, threading.Event()))
    with pool:
        assert len(pool.threads) == pool.room == 3
        pool._follow_cluster()
        assert len(pool.threads) == 3
    assert max(asked) == 0
    assert len(lines) == 1
    assert lines[0].startswith("this machine has memory for what Ray keeps here of 3 lanes, of 10 that the nodes have")


def test_lanes_follow_the_nodes_and_the_jobs(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, Any] = {"head": {"CPU": 1.0}}
    asked: list[int] = []
    may = threading.Event()
    monkeypatch.setattr(lane, "NODES_INTERVAL_S", 0.01)
    monkeypatch.setattr(lane.nodes, "live", lambda: dict(there))
    monkeypatch.setattr(lane.nodes.Demand, "set", lambda self, plan, count: asked.append(count))
    pool = LanePool(LanePlan(6, 1, 1, 0.0, is_elastic=True), built.store.uri, tmp_path)
    monkeypatch.setattr(pool, "_trainer", lambda number: Hand(pool, number, may))
    pool.start()
    try:
        assert (set(pool.threads), pool.room) == ({0}, 1)
        there["joined"] = {"CPU": 3.0, "GPU": 1.0}
        wait_until(lambda: set(pool.threads) == {0, 1, 2, 3}, SOON_S)
        wait_until(
            lambda: asked[-1] == 2, SOON_S
        )  # once they are all up, an autoscaler hears of those that are missing
        there["another"] = {"CPU": 64.0}
        wait_until(lambda: len(pool.threads) == 6, SOON_S)
        for name in ("one", "two"):
            pool.submit(name, None)  # type: ignore[arg-type]
        events = pool.mailbox.events_since.remote
        wait_until(lambda: sum(event["type"] == "start" for event in ray.get(events(0))) == 2, SOON_S)
        pool.expect(2)
        wait_until(lambda: len(pool.threads) == 2, SOON_S)
        held = {int(event["lane"]) for event in ray.get(events(0)) if event["type"] == "start"}
        assert set(pool.threads) == held, "only lanes without a job end"
        pool.expect(3)
        wait_until(lambda: len(pool.threads) == 3, SOON_S)
    finally:
        may.set()
        pool.close()
    assert asked[-1] == 0, "nothing is asked for any more"
