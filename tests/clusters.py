"""A Ray cluster of several nodes on this machine, to which nodes come and from which they go, and who works on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import environment

# The driver and the mailbox are on the head.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(NUM_NODES)]
cluster.wait_for_nodes()
def tell(node):
    return {"id": node.node_id, "raylet": node.all_processes["raylet"][0].process.pid}
print(json.dumps({"address": cluster.address, "nodes": [tell(node) for node in nodes]}), flush=True)
for line in sys.stdin:
    what, number = line.split()
    if what == "add":
        nodes.append(cluster.add_node(num_cpus=1))
    else:
        cluster.remove_node(nodes[int(number)], allow_graceful=False)
    print(json.dumps({"done": tell(nodes[int(number)]) if what == "add" else {}}), flush=True)
cluster.shutdown()
"""


@dataclass
class Nodes:
    """Those of one CPU beside the head, by number."""

    process: subprocess.Popen[str]
    address: str
    nodes: list[dict[str, Any]]

    def _do(self, what: str, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {number}\n")
        self.process.stdin.flush()
        done: dict[str, Any] = json.loads(next(line for line in self.process.stdout if line.startswith('{"done"')))
        return done["done"]

    def remove(self, number: int) -> None:
        """As if its power was cut."""
        self._do("remove", number)

    def add(self) -> int:
        """Another one; returns its number."""
        self.nodes.append(self._do("add", len(self.nodes)))
        return len(self.nodes) - 1

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

    def with_workers(self, actor: str) -> set[int]:
        """Numbers of the nodes on which an actor of this class is alive."""
        raylets = {node["raylet"]: number for number, node in enumerate(self.nodes)}
        return {raylets[parent] for parent in workers(actor).values() if parent in raylets}

    def has_lane(self, number: int) -> bool:
        return number in self.with_workers("TrainWorker")


@contextmanager
def nodes(log: Path, num: int, head_cpus: int = 1) -> Iterator[Nodes]:
    """A cluster of a head and so many nodes."""
    code = CLUSTER.replace("HEAD_CPUS", str(head_cpus)).replace("NUM_NODES", str(num))
    with running(code, log) as (process, found):
        yield Nodes(process, **found)


@contextmanager
def running(code: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process of its own that makes the cluster: the tests' shared session stays as it is.

    Args:
        code: prints one line of JSON with the `address` once the cluster is up, and ends with its standard input.

    Yields:
        The process, and what it printed.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith('{"address"')), None)
        assert line is not None, log.read_text()
        yield process, json.loads(line)
        process.stdin.close()
        process.wait(timeout=120)


def workers(actor: str) -> dict[int, int]:
    """Parent (the raylet) of each process of an actor: Ray names a process after its actor's class."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes().decode(errors="replace")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if name.startswith("ray::") and actor in name:
            found[int(path.name)] = parent
    return found
