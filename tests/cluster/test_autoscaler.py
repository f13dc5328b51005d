"""Ray's own autoscaler, whose nodes are processes of this machine: it brings the nodes that lanes want, and takes them.

A driver that is killed leaves nothing behind that would keep a node, and its bill, alive.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import running, workers
from command_line import finish, start, wait_until
from ray_head import TINY
from yaml import safe_dump

pytestmark = pytest.mark.slow
CONFIG: dict[str, Any] = {
    "cluster_name": "here",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.3,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
    "file_mounts_sync_continuously": False,
}
HEAD = """
import json, os, sys
os.environ |= {{"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}}
from ray.cluster_utils import Cluster
head = {{"num_cpus": 0, "include_dashboard": False, "gcs_server_port": {port}, "autoscaling_config": {config!r}}}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(json.dumps({{"address": cluster.address}}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a head without a CPU, and up to two nodes of one CPU that are not there yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, file = dict(CONFIG), tmp_path / "autoscaler.json"
    config["provider"] = {**CONFIG["provider"], "gcs_address": f"127.0.0.1:{port}"}
    file.write_text(json.dumps(config))
    with running(HEAD.format(port=port, config=str(file)), tmp_path / "head.log") as (_, found):
        yield found["address"]


def raylets(address: str) -> int:
    """Nodes of this cluster, the head among them."""
    port = address.rpartition(":")[2]
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return sum(line.split(b"\0")[0].endswith(b"/raylet") and f":{port}".encode() in line for line in lines)


def begin(folder: Path, address: str, *, trials: int, epochs: int) -> subprocess.Popen[str]:
    trial = {**TINY["trial"], "train": {**TINY["trial"]["train"], "epochs": epochs}}
    space = {**TINY, "trial": trial, "search": {**TINY["search"], "trials": trials}}
    (folder / "tiny.yaml").write_text(safe_dump(space))
    return start(folder, "run", "tiny.yaml", "--address", address)


def test_nodes_come_with_the_lanes_and_go_with_them(address: str, tmp_path: Path) -> None:
    process = begin(tmp_path, address, trials=6, epochs=60)
    wait_until(lambda: len(set(workers("TrainWorker").values())) == 2 or process.poll() is not None)
    done = finish(process)
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    (folder,) = (tmp_path / "results" / "tiny").iterdir()
    assert pq.read_table(folder / "trials.parquet")["state"].to_pylist() == ["completed"] * 6
    wait_until(lambda: raylets(address) == 1)


def test_a_killed_driver_keeps_no_node(address: str, tmp_path: Path) -> None:
    process = begin(tmp_path, address, trials=60, epochs=50_000)
    wait_until(lambda: len(set(workers("TrainWorker").values())) == 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: raylets(address) == 1)
