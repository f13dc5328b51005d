"""What a file of Ray's cluster launcher says about a cluster's size and price: read, never started.

    available_node_types: {<type>: {resources: {CPU: 4, GPU: 1}, max_workers: 8}}       Ray's own
    metadata: {sweeper: {<type>: {gpu: A10G, price_per_hour: 1.0}}}                     ours: Ray passes it over

Ray's provider for machines of one's own, `local`, has addresses and no types; there `metadata.sweeper` says what `head`
and `worker` have, in `resources`.

Ray's schema refuses keys that it does not know; `metadata` is what it leaves to others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweeper.errors import InputError

DEFAULT_MAX_WORKERS = 2  # Ray's


@dataclass(frozen=True)
class NodeType:
    """Nodes of one type, at most `count` at a time. `price` in dollars an hour of one node, where the file has it."""

    name: str
    count: int
    cpus: float
    gpus: float
    gpu: str
    price: float | None

    def slots(self, cpus: float, gpus: float) -> float:
        """Trainings that one node holds when each takes so many CPUs and GPUs."""
        return min(self.cpus / cpus, self.gpus / gpus) if gpus else self.cpus / cpus


@dataclass(frozen=True)
class Cluster:
    """The head, and the workers when all of them are up."""

    path: Path
    head: NodeType
    workers: tuple[NodeType, ...]

    @property
    def totals(self) -> dict[str, float]:
        """CPUs and GPUs of all nodes, as `ray.cluster_resources` would give them."""
        nodes = (self.head, *self.workers)
        return {"CPU": sum(n.count * n.cpus for n in nodes), "GPU": sum(n.count * n.gpus for n in nodes)}

    @property
    def device(self) -> str:
        """What trainings run on: the first workers' GPU, or `cpu`."""
        return next((node.gpu for node in (*self.workers, self.head) if node.gpus), "cpu")

    def price(self, cpus: float, gpus: float) -> float | None:
        """Dollars an hour of one slot of so many CPUs and GPUs, mean over the workers; None where a price is missing.

        Of a cluster without workers the head's.
        """
        nodes = [node for node in self.workers or (self.head,) if node.slots(cpus, gpus) >= 1]
        if not nodes or any(node.price is None for node in nodes):
            return None
        dollars = math.fsum(node.count * (node.price or 0.0) for node in nodes)
        return dollars / math.fsum(node.count * math.floor(node.slots(cpus, gpus)) for node in nodes)


def read(path: Path) -> Cluster:
    """Read the file; worker types fill `max_workers` in the order in which they stand there.

    Raises:
        InputError: it can not be read, or lacks what says how large the cluster is.
    """
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"--cluster {path}: can not be read as YAML: {reason}") from error
    found = _with_types(_mapping(found, "the file", path), path)
    types = found.get("available_node_types")
    types = _mapping(types, "available_node_types", path)
    head_name = found.get("head_node_type")
    if head_name not in types:
        raise InputError(f"--cluster {path}: head_node_type: {head_name!r}; allowed: {', '.join(map(str, types))}")
    metadata = _mapping(found.get("metadata") or {}, "metadata", path)
    facts = _mapping(metadata.get("sweeper") or {}, "metadata.sweeper", path)
    strange = [name for name in facts if name not in types]
    if strange:
        raise InputError(f"--cluster {path}: metadata.sweeper: {strange[0]!r} is none of {', '.join(map(str, types))}")
    left = int(_number(found.get("max_workers", DEFAULT_MAX_WORKERS), "max_workers", path))
    most, workers = left, []
    for name, settings in types.items():
        settings = _mapping(settings, f"available_node_types.{name}", path)
        where = f"available_node_types.{name}.max_workers"
        count = min(left, int(_number(settings.get("max_workers", 0 if name == head_name else most), where, path)))
        if count:
            workers.append(_node(name, count, settings, facts.get(name) or {}, path))
            left -= count
    head = _node(head_name, 1, _mapping(types[head_name], str(head_name), path), facts.get(head_name) or {}, path)
    return Cluster(path, head, tuple(workers))


def _with_types(found: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The file as it would be if Ray's provider `local` had node types; any other file as it is."""
    provider = found.get("provider")
    if not isinstance(provider, Mapping) or provider.get("type") != "local":
        return found
    facts = _mapping(found.get("metadata") or {}, "metadata", path).get("sweeper") or {}
    facts = _mapping(facts, "metadata.sweeper", path)
    strange = [name for name in facts if name not in ("head", "worker")]
    if strange:
        raise InputError(f"--cluster {path}: metadata.sweeper: {strange[0]!r} is none of head, worker")
    known: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for name in ("head", "worker"):
        known[name] = dict(_mapping(facts.get(name) or {}, f"metadata.sweeper.{name}", path))
        types[name] = {"resources": known[name].pop("resources", None)}
        where = f"metadata.sweeper.{name}.resources"
        for key, value in _resources(types[name], where, path).items():
            _number(value, f"{where}.{key}", path)
    workers = provider.get("worker_ips")
    if not isinstance(workers, list):
        raise InputError(f"--cluster {path}: provider.worker_ips: {workers!r}; allowed: a list of addresses")
    types["worker"]["max_workers"] = len(workers)
    ours = {"available_node_types": types, "head_node_type": "head", "metadata": {"sweeper": known}}
    return {"max_workers": len(workers), **found, **ours}


def _resources(settings: Mapping[str, Any], where: str, path: Path) -> Mapping[str, Any]:
    resources = settings.get("resources")
    if not isinstance(resources, Mapping) or "CPU" not in resources:
        raise InputError(f"--cluster {path}: {where}: is missing; say what a node has, such as {{CPU: 4, GPU: 1}}")
    return resources


def _node(name: str, count: int, settings: Mapping[str, Any], facts: Any, path: Path) -> NodeType:
    where = f"available_node_types.{name}.resources"
    resources = _resources(settings, where, path)
    known = f"metadata.sweeper.{name}"
    facts = _mapping(facts, known, path)
    strange = [key for key in facts if key not in ("gpu", "price_per_hour")]
    if strange:
        raise InputError(f"--cluster {path}: {known}: {strange[0]!r} is not known; allowed: gpu, price_per_hour")
    cpus = _number(resources["CPU"], f"{where}.CPU", path)
    gpus = _number(resources.get("GPU", 0), f"{where}.GPU", path)
    price = facts.get("price_per_hour")
    price = None if price is None else _number(price, f"{known}.price_per_hour", path)
    return NodeType(str(name), count, cpus, gpus, str(facts.get("gpu", "GPU")), price)


def _mapping(value: Any, where: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"--cluster {path}: {where}: has to be a mapping, as in cluster/aws.yaml; given {value!r}")
    return value


def _number(value: Any, where: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"--cluster {path}: {where}: {value!r}; allowed: a number, 0 or more")
    return float(value)
