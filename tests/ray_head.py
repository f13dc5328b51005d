"""A head of a Ray cluster as a submitted run meets it: a dashboard on the loopback that asks for a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from clusters import running
from command_line import finish, start

TOKEN = "a-token-of-the-tests"

HEAD = """
import json, os, sys
os.environ.update(json.loads({environment!r}))
import socket
from ray.cluster_utils import Cluster
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ports = {{"dashboard_port": port, "dashboard_agent_listen_port": 0}}  # other clusters may be on this machine
dashboard = {{"include_dashboard": True, "dashboard_host": "127.0.0.1", **ports}}
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, **dashboard}})
cluster.wait_for_nodes()
print(json.dumps({{"address": "http://" + cluster.webui_url}}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""

# Fast: no teacher, no generator.
TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"kind": "digits", "train_per_class": 2, "image_size": 16},
    "views": {"per_image": 1},
    "trial": {
        "teacher": "none",
        "student": {"model": "test_resnet", "init": "random"},
        "loss": {"ce": 1.0},
        "train": {"epochs": 2, "batch_size": 20, "lr": {"loguniform": [1e-3, 1e-2]}},
    },
    "search": {"trials": 2, "sampler": "random", "scheduler": {"kind": "fifo"}},
    "finalists": {"count": 1, "seeds": 1, "ablate": False},
}


@dataclass(frozen=True, kw_only=True)
class Laptop:
    """A folder of a user's own, whose home is not the head's."""

    folder: Path
    address: str
    more: Mapping[str, str]

    @property
    def store(self) -> str:
        return str(self.folder / "a store's")

    def write(self, file: str, **sections: Any) -> str:
        (self.folder / file).write_text(yaml.safe_dump({**TINY, **sections}, sort_keys=False))
        return file

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return start(self.folder, *arguments, more={**self.more, **more})

    def sweeper(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*arguments, **more))

    def submit(self, space: str, *arguments: str) -> tuple[str, ...]:
        """The command, for a cluster by its address."""
        return ("submit", space, "--address", self.address, "--store", self.store, *arguments)


@contextmanager
def head(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A head whose home is `folder`: its process, and its dashboard's address."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    with running(HEAD.format(environment=json.dumps(environment)), folder / "head.log") as (process, found):
        yield process, found["address"]


def laptop(folder: Path, address: str) -> Laptop:
    """A laptop that has the cluster's token in its home."""
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    return Laptop(folder=folder, address=address, more={"HOME": str(home)})
