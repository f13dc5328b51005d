"""`sweeper run --address`: a small sweep on four nodes, to which one comes and from which one goes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from clusters import nodes
from command_line import NOISE, finish, read_to, start, wait_until
from small_sweep import write_space


def test_a_sweep_on_four_nodes_and_on_a_fifth_that_comes_while_one_goes(tmp_path: Path) -> None:
    tree = {
        "name": "small",
        "dataset": {"kind": "noise", "classes": 10, "train": 4000, "val": 48, "test": 48, "image_size": 16},
        "trial": {
            "student": {"model": "test_efficientnet"},
            "train": {"epochs": {"choice": [*range(40, 52)]}, "batch_size": 16, "epoch_size": 96, "lr": 3e-3},
        },
        "search": {"trials": 12, "sampler": "random", "scheduler": {"kind": "fifo"}},
        "finalists": {"count": 1, "seeds": 1, "ablate": False},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(tree))
    with nodes(tmp_path / "cluster.log", 4, head_cpus=0) as cluster:
        process = start(tmp_path, "run", "space.yaml", "--address", cluster.address)
        decoded = set[int]()
        wait_until(lambda: decoded.update(cluster.with_workers("ray::MapBatches")) or decoded == {0, 1, 2, 3})
        read = read_to(process, r"^\[1/")
        wait_until(lambda: cluster.with_workers("TrainWorker") == {0, 1, 2, 3})
        joined = cluster.add()
        wait_until(lambda: cluster.has_lane(joined) or process.poll() is not None)
        assert process.poll() is None, "the search was over before"
        cluster.remove(0)
        done = finish(process)
    _is_whole(done, read + done.stdout, tmp_path, 12)


def _is_whole(done: subprocess.CompletedProcess[str], printed: str, folder: Path, num_trials: int) -> None:
    assert (done.stderr, done.returncode) == ("", 0)
    assert not NOISE.search(printed), NOISE.findall(printed)
    (run,) = (folder / "results" / "small").iterdir()
    assert pq.read_table(run / "trials.parquet")["state"].to_pylist() == ["completed"] * num_trials


@pytest.mark.slow  # four minutes: on two cores the workers of each stage come up one after the other
def test_every_stage_on_four_nodes(tmp_path: Path, generator_folder: Path) -> None:
    trial = {
        "teacher": {"choice": ["cnn", "none"]},
        "student": {"model": "test_efficientnet"},
        "synthetic": {"source": "tiny", "ratio": {"choice": [0, 0.5]}, "labels": "hard"},
        "loss": {"kl": {"weight": 1.0}},
        "train": {"epochs": 48, "batch_size": 16, "epoch_size": 96, "lr": 3e-3},
    }
    sections = {
        # work for four workers in each stage
        "dataset": {"kind": "noise", "classes": 10, "train": 900, "val": 48, "test": 48, "image_size": 16},
        "trial": trial,
        "search": {"trials": 16, "sampler": "random", "scheduler": {"kind": "fifo"}},
        "finalists": {"count": 1, "seeds": 1, "ablate": False},
    }
    write_space(tmp_path / "space.yaml", generator_folder, **sections)
    with nodes(tmp_path / "cluster.log", 4, head_cpus=0) as cluster:
        process = start(tmp_path, "run", "space.yaml", "--address", cluster.address)
        read = read_to(process, r"^synthetic images")
        wait_until(lambda: cluster.with_workers("MapWorker") == {0, 1, 2, 3})
        read += read_to(process, r"^targets")
        wait_until(lambda: cluster.with_workers("MapWorker") == {0, 1, 2, 3})
        read += read_to(process, r"^\[1/")
        wait_until(lambda: cluster.with_workers("TrainWorker") == {0, 1, 2, 3})
        joined = cluster.add()
        wait_until(lambda: cluster.has_lane(joined))
        cluster.remove(0)
        done = finish(process)
    _is_whole(done, read + done.stdout, tmp_path, 16)
