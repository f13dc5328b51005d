"""Which nodes a cluster has, which ones its autoscaler may add, and waiting for them.

What an autoscaler may add stands in the launcher's file, which `ray up` leaves on the head. Elsewhere (KubeRay,
machines of one's own) only what is there counts, and what comes later.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from sweeper import cluster_file
from sweeper.errors import InputError, RunFailed
from sweeper.slots import MEMORY, LanePlan, Totals, described

LAUNCHERS_FILE = "ray_bootstrap_config.yaml"  # in the home of the account that `ray up` used
TOLD_AFTER_S = 20.0  # a node that is about to join needs no words
LOOK_INTERVAL_S = 1.0
MOST_ASKED = 64  # at a time; more as these come

Tell = Callable[[str], None]


def live() -> dict[str, Totals]:
    """What each node has that is alive, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def memory_here() -> float:
    """Bytes that Ray's processes may take on this node; infinite where that is not known."""
    return live()[ray.get_runtime_context().get_node_id()].get(MEMORY) or math.inf


def addable() -> list[Totals]:
    """What nodes have that the autoscaler of this head may add; none where there is no such file, or it is damaged."""
    path = Path.home() / LAUNCHERS_FILE
    try:
        workers = cluster_file.read(path).workers if path.exists() else ()
    except (InputError, OSError):
        return []
    return [{"CPU": worker.cpus, "GPU": worker.gpus} for worker in workers]


def has_gpus(*, may_grow: bool) -> bool:
    """Whether anything on this cluster can run on a GPU, now or once its autoscaler was asked."""
    nodes = [*live().values(), *(addable() if may_grow else ())]
    return any(node.get("GPU", 0) > 0 for node in nodes)


class Demand:
    """Room that an autoscaler is asked for: placement groups that nobody uses.

    `ray.autoscaler.sdk.request_resources` would do as well, and stands until somebody takes it back: where this driver
    is killed, its nodes would be kept, and paid for, without end. Placement groups go with their driver.
    """

    def __init__(self) -> None:
        self._groups: list[PlacementGroup] = []

    def set(self, plan: LanePlan, count: int) -> None:
        """Ask for so many that are not there yet; room that has come is given free for whom it was asked for."""
        known = placement_group_table() if self._groups else {}
        for group in [*self._groups]:
            if known[group.id.hex()]["state"] == "CREATED":
                self._drop(group)
        for group in self._groups[count:]:
            self._drop(group)
        while len(self._groups) < min(count, MOST_ASKED):
            self._groups.append(placement_group([plan.bundle] * plan.workers, strategy="PACK"))

    def _drop(self, group: PlacementGroup) -> None:
        self._groups.remove(group)
        remove_placement_group(group)


class Shortage:
    """What is said about nodes that are not there: once after a while, and at last that nobody waits any longer."""

    def __init__(self, tell: Tell, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.tell, self.minutes, self.clock = tell, minutes, clock
        self._since: float | None = None
        self._is_told = self._is_head_told = False

    def of(self, what: str, plan: LanePlan, nodes: Sequence[Totals]) -> None:
        """There is no room for it now. Raises RunFailed once that has lasted for `minutes`."""
        now = self.clock()
        self._since = self._since if self._since is not None else now
        lacking = f"{what} needs {plan.each}, and no node has room for it: {_listed(nodes)}"
        if now - self._since >= 60 * self.minutes:
            raise RunFailed(
                f"{lacking}; waited {self.minutes:g} minutes (resources.wait_minutes). Add nodes, or ask for less in "
                "resources:, and run again: it goes on from here"
            )
        if now - self._since >= TOLD_AFTER_S and not self._is_told:
            self._is_told = True
            more = [f"one of {described(node)}" for node in addable()]
            coming = f"the autoscaler may add {' or '.join(more)}" if more else "nodes that join are taken up"
            self.tell(f"{lacking}; waiting up to {self.minutes:g} minutes; {coming}")

    def of_head(self, num_lanes: int, wanted: int) -> None:
        """The driver's machine has memory for fewer lanes than the nodes have room for; said once."""
        if not self._is_head_told:
            self._is_head_told = True
            self.tell(
                f"this machine has memory for what Ray keeps here of {num_lanes} lanes, of {wanted} that the nodes "
                "have room for: a head with more memory takes more"
            )

    def is_over(self) -> None:
        """There is room again."""
        if self._is_told:
            self.tell("nodes have joined: going on")
        self._since, self._is_told = None, False


def wait_for(what: str, plan: LanePlan, minutes: float, tell: Tell) -> None:
    """Return once some node has room for one of these, with nothing else on it.

    Raises:
        RunFailed: none has come in so many minutes.
    """
    shortage, demand = Shortage(tell, minutes), Demand()
    try:
        while not plan.fits(nodes := [*live().values()]):
            demand.set(plan, 1)
            shortage.of(what, plan, nodes)
            time.sleep(LOOK_INTERVAL_S)
    finally:
        demand.set(plan, 0)
    shortage.is_over()


def _listed(nodes: Sequence[Totals]) -> str:
    """`2 nodes of 4 CPU, 1 node of 4 CPU and 1 GPU`."""
    kinds = Counter(described(node) for node in nodes)
    return ", ".join(f"{count} node{'s' if count > 1 else ''} of {what}" for what, count in kinds.items()) or "none"
