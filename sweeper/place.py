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


@dataclass(frozen=True)
class Place:
    """A machine or a cluster.

    Attributes:
        totals: CPUs and GPUs, as `ray.cluster_resources` gives them; None for a cluster that was not asked.
        price: dollars a device-hour, which is an hour of one slot; None where nobody said.
        head_price: dollars an hour of a head that is paid besides, as long as the run lasts.
    """

    slot: Slot
    totals: Mapping[str, float] | None
    price: float | None = None
    head_price: float | None = None
    name: str = "this machine"

    def lanes(self, config: SweepConfig) -> int | None:
        """Trainings at a time; None where that is not known."""
        if self.totals is None:
            return None
        most = max(config.search.trials or 1_000, config.finalists.count * config.finalists.seeds)
        return slots.plan_lanes(config.resources, dict(self.totals), most).num_lanes

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
    return Place(slot, totals if is_local else None, price)


def on_cluster(cluster: Cluster, resources: ResourceConfig, price: float | None = None) -> Place:
    """A cluster with all its workers; `price` stands above the file's."""
    mine = here().slot
    gpus = resources.gpus_per_trial if cluster.totals["GPU"] else 0.0
    slot = mine if cluster.device == mine.device else devices.slot(cluster.device, is_here=False)
    if price is None:
        price = cluster.price(resources.cpus_per_trial, gpus)
    head_price = cluster.head.price if cluster.workers else None
    nodes = " and ".join(f"{node.count} x {node.name}" for node in cluster.workers) or "its head alone"
    return Place(slot, cluster.totals, price, head_price, f"{cluster.path.name} ({nodes})")
