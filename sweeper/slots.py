"""How many lanes a cluster holds, and what each takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.config import ResourceConfig

Totals = Mapping[str, float]  # of one node or of several: how many of `CPU`, `GPU` and what else Ray counts
MEMORY = "memory"  # among them, in bytes
# Bytes that a run takes beside its data (benchmarks/scaling.py): the driver and Ray's own processes; of each lane what
# Ray Train and Tune keep beside the driver; and each worker, with torch in it.
DRIVER_BYTES, BESIDE_DRIVER_BYTES, WORKER_BYTES = 2e9, 0.51e9, 0.75e9


@dataclass(frozen=True)
class LanePlan:
    """How many lanes there are to be, and what each takes.

    Attributes:
        num_lanes: at most; of an elastic plan there are as many of them as the cluster holds at the time.
        head_room: of an elastic plan, as many as the memory of the driver's machine is enough for.
        workers: processes of a lane, which may be on several nodes.
        cpus, gpus: of each worker.
    """

    num_lanes: int
    workers: int
    cpus: int
    gpus: float
    is_elastic: bool = False
    head_room: int = sys.maxsize

    @property
    def bundle(self) -> dict[str, float]:
        """What a worker takes, as Ray counts it."""
        return {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def each(self) -> str:
        """What a lane takes, in words: `1 CPU and 0.5 GPU`, `4 x 1 CPU`."""
        what = described(self.bundle)
        return f"{self.workers} x ({what})" if self.workers > 1 else what

    def fits(self, nodes: Iterable[Totals]) -> int:
        """How many lanes these nodes hold, with nothing else on them."""
        return sum(copies(self.bundle, node) for node in nodes) // self.workers


def described(bundle: Totals) -> str:
    """`4 CPU and 1 GPU`."""
    return " and ".join(f"{bundle[name]:g} {name}" for name in ("CPU", "GPU") if bundle.get(name)) or "nothing"


def copies(bundle: Totals, node: Totals) -> int:
    """How often a node holds all of the bundle."""
    return int(min(node.get(name, 0) // amount for name, amount in bundle.items() if amount))


def plan_lanes(resources: ResourceConfig, totals: Totals, most: int) -> LanePlan:
    """Lanes that fit these resources of one machine, at least one and at most `most`.

    GPUs are asked for only where there are any; without them a lane holds its CPUs alone. Memory counts where it is
    known.
    """
    plan = elastic_lanes(resources, has_gpus=totals.get("GPU", 0) > 0, most=most)
    room = _lanes_within(totals.get(MEMORY, math.inf), BESIDE_DRIVER_BYTES + plan.workers * WORKER_BYTES)
    return replace(plan, num_lanes=max(1, min(plan.fits([totals]), room, most)), is_elastic=False)


def elastic_lanes(resources: ResourceConfig, *, has_gpus: bool, most: int, head_memory: float = math.inf) -> LanePlan:
    """Lanes on a cluster that others bring nodes to and take nodes from.

    Args:
        head_memory: bytes of the driver's machine.
    """
    gpus = resources.gpus_per_trial if has_gpus else 0.0
    room = _lanes_within(head_memory, BESIDE_DRIVER_BYTES)
    return LanePlan(most, resources.workers_per_trial, resources.cpus_per_trial, gpus, True, room)


def _lanes_within(memory: float, lane_bytes: float) -> int:
    """Lanes that so many bytes are enough for, at least one."""
    return sys.maxsize if memory == math.inf else max(1, int((memory - DRIVER_BYTES) / lane_bytes))
