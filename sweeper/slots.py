"""How many lanes a cluster holds, and what each takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.config import ResourceConfig

Totals = Mapping[str, float]  # of one node or of several: how many of `CPU`, `GPU` and what else Ray counts


@dataclass(frozen=True)
class LanePlan:
    """How many lanes there are to be, and what each takes.

    Attributes:
        num_lanes: at most; of an elastic plan there are as many of them as the cluster holds at the time.
        workers: processes of a lane, which may be on several nodes.
        cpus, gpus: of each worker.
    """

    num_lanes: int
    workers: int
    cpus: int
    gpus: float
    is_elastic: bool = False

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
    """Lanes that fit these resources, at least one and at most `most`.

    GPUs are asked for only where there are any; without them a lane holds its CPUs alone.
    """
    plan = elastic_lanes(resources, has_gpus=totals.get("GPU", 0) > 0, most=most)
    return replace(plan, num_lanes=max(1, min(plan.fits([totals]), most)), is_elastic=False)


def elastic_lanes(resources: ResourceConfig, *, has_gpus: bool, most: int) -> LanePlan:
    """Lanes on a cluster that others bring nodes to and take nodes from."""
    gpus = resources.gpus_per_trial if has_gpus else 0.0
    return LanePlan(most, resources.workers_per_trial, resources.cpus_per_trial, gpus, is_elastic=True)
