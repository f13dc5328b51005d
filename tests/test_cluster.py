"""`sweeper run --address`: the small sweep on a cluster of two nodes, placed by Ray's resources alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import lane_workers, running
from command_line import NOISE, finish, start
from small_sweep import write_space

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Two nodes of one CPU each."""
    with running(CLUSTER, tmp_path / "cluster.log") as (_, found):
        yield found


def test_a_sweep_on_two_nodes(cluster: dict[str, Any], tmp_path: Path, generator_folder: Path) -> None:
    trial = {
        "teacher": {"choice": ["cnn", "none"]},
        "student": {"model": "test_efficientnet"},
        "synthetic": {"source": "tiny", "ratio": {"choice": [0, 1]}, "labels": "hard"},
        "train": {"epochs": 2, "batch_size": 16, "epoch_size": 48, "lr": 3e-3},
    }
    search = {"trials": 4, "sampler": "random"}
    finalists = {"count": 1, "seeds": 1, "ablate": False}
    write_space(tmp_path / "space.yaml", generator_folder, trial=trial, search=search, finalists=finalists)
    process = start(tmp_path, "run", "space.yaml", "--address", cluster["address"])
    seen: set[int] = set()
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        seen.update(set(lane_workers().values()) & set(cluster["raylets"]))
        time.sleep(0.1)
    done = finish(process, patience_s=1)
    assert (done.stderr, done.returncode) == ("", 0)
    assert not NOISE.search(done.stdout), NOISE.findall(done.stdout)
    assert seen == set(cluster["raylets"]), "a lane needs a CPU and each node has one"
    (folder,) = (tmp_path / "results" / "small").iterdir()
    assert pq.read_table(folder / "trials.parquet")["state"].to_pylist() == ["completed"] * 4
