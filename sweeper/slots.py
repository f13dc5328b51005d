"""How many lanes a cluster holds, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.config import ResourceConfig


@dataclass(frozen=True)
class LanePlan:
    """How many lanes the cluster holds, and what each takes."""

    num_lanes: int
    workers: int
    cpus: int
    gpus: float

    @property
    def slots(self) -> str:
        """For the header: `2 lanes, 1 CPU each`."""
        what = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus} CPU"
        each = f"{self.workers} x {what}" if self.workers > 1 else what
        return f"{self.num_lanes} lane{'s' if self.num_lanes != 1 else ''}, {each} each"


def plan_lanes(resources: ResourceConfig, totals: dict[str, float], most: int) -> LanePlan:
    """Lanes that fit the cluster's resources, at least one and at most `most`.

    GPUs are asked for only where the cluster has any; without them a lane holds its CPUs alone.
    """
    gpus = resources.gpus_per_trial if totals.get("GPU", 0) > 0 else 0.0
    fits = [totals.get("CPU", 1) // (resources.cpus_per_trial * resources.workers_per_trial)]
    if gpus:
        fits.append(totals["GPU"] // (gpus * resources.workers_per_trial))
    count = max(1, min(int(min(fits)), most))
    return LanePlan(count, resources.workers_per_trial, resources.cpus_per_trial, gpus)
