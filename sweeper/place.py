"""Where a sweep would run: what a training holds there, how many run at a time, and what that costs an hour."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from sweeper import devices, slots
from sweeper.cluster_file import Cluster
from sweeper.config import ResourceConfig, SweepConfig
from sweeper.devices import Slot

OF_MEMORY = 0.7  # what Ray gives to processes; the rest is its object store's
DRIVER_CORES = LANE_CORES = (
    0.1  # of a CPU: the driver with Ray's daemons, and what Ray keeps besides each lane's worker
)


@dataclass(frozen=True)
class Place:
    """A machine or a cluster.

    Attributes:
        totals: CPUs and GPUs, as `ray.cluster_resources` gives them; None for a cluster that was not asked.
        price: dollars a device-hour, which is an hour of one slot; None where nobody said.
        head_price: dollars an hour of a head that is paid besides, as long as the run lasts.
        is_one: a single machine, on which the driver and Ray work beside the lanes.
    """

    slot: Slot
    totals: Mapping[str, float] | None
    price: float | None = None
    head_price: float | None = None
    name: str = "this machine"
    is_one: bool = False

    def lanes(self, config: SweepConfig) -> int | None:
        """Trainings at a time; None where that is not known."""
        if self.totals is None:
            return None
        most = max(config.search.trials or 1_000, config.finalists.count * config.finalists.seeds)
        return slots.plan_lanes(config.resources, dict(self.totals), most).num_lanes

    def crowding(self, config: SweepConfig) -> float:
        """By how much a training takes longer on the clock than a core of its own would: where lanes leave none free.

        Measured on two cores with two lanes: 1.13 to 1.18.
        """
        lanes = self.lanes(config)
        if lanes is None or not self.is_one or self.slot.processor != "CPU" or self.totals is None:
            return 1.0
        busy = DRIVER_CORES + lanes * (
            LANE_CORES + config.resources.workers_per_trial * config.resources.cpus_per_trial
        )
        return max(1.0, busy / max(1.0, self.totals["CPU"]))

    @property
    def num_devices(self) -> int:
        """Workers of a stage at a time; 1 where that is not known."""
        return max(1, int((self.totals or {}).get(self.slot.processor, 1)))


def here(*, is_local: bool = True, price: float | None = None) -> Place:
    """This machine; with `is_local` false some cluster whose devices are like the one here."""
    import torch

    from sweeper.ledger import device_name

    slot = devices.slot(device_name("cuda" if torch.cuda.is_available() else "cpu"), is_here=True)
    processors = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
    totals = {**processors, slots.MEMORY: OF_MEMORY * psutil.virtual_memory().total}
    return Place(slot, totals if is_local else None, price, is_one=is_local)


def on_cluster(cluster: Cluster, resources: ResourceConfig, price: float | None = None) -> Place:
    """A cluster with all its workers; `price` stands above the file's."""
    mine = here().slot
    gpus = resources.gpus_per_trial if cluster.totals["GPU"] else 0.0
    slot = mine if cluster.device == mine.device else devices.slot(cluster.device, is_here=False)
    if price is None:
        price = cluster.price(resources.cpus_per_trial, gpus)
    head_price = cluster.head.price if cluster.workers else None
    nodes = " and ".join(f"{node.count} x {node.name}" for node in cluster.workers) or "its head alone"
    name = f"{cluster.path.name} ({nodes})"
    return Place(slot, cluster.totals, price, head_price, name, is_one=not cluster.workers)
