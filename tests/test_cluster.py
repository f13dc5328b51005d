"""`sweeper run --address`: a small sweep on two nodes; and on four, to which one comes and from which one goes."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import nodes
from command_line import NOISE, PATIENCE_S, finish, read_to, start, wait_until
from small_sweep import write_space


def test_a_sweep_on_two_nodes(tmp_path: Path, generator_folder: Path) -> None:
    trial = {
        "teacher": {"choice": ["cnn", "none"]},
        "student": {"model": "test_efficientnet"},
        "loss": {"kl": {"weight": 1.0}},
        "train": {"epochs": 2, "batch_size": 16, "epoch_size": 48, "lr": 3e-3},
    }
    search = {"trials": 4, "sampler": "random"}
    finalists = {"count": 1, "seeds": 1, "ablate": False}
    write_space(tmp_path / "space.yaml", generator_folder, trial=trial, search=search, finalists=finalists)
    with nodes(tmp_path / "cluster.log", 2, head_cpus=0) as cluster:
        process, seen = start(tmp_path, "run", "space.yaml", "--address", cluster.address), set[int]()
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            seen |= cluster.with_workers("TrainWorker")
            time.sleep(0.1)
        done = finish(process, patience_s=1)
    assert (done.stderr, done.returncode) == ("", 0)
    assert not NOISE.search(done.stdout), NOISE.findall(done.stdout)
    assert seen == {0, 1}, "a lane needs a CPU and each node has one"
    (folder,) = (tmp_path / "results" / "small").iterdir()
    assert pq.read_table(folder / "trials.parquet")["state"].to_pylist() == ["completed"] * 4


@pytest.mark.slow  # three minutes and more: on two cores four lanes come up one after the other
def test_a_sweep_on_four_nodes_and_on_a_fifth_that_comes_while_one_goes(tmp_path: Path, generator_folder: Path) -> None:
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
    assert (done.stderr, done.returncode) == ("", 0)
    printed = read + done.stdout
    assert not NOISE.search(printed), NOISE.findall(printed)
    (folder,) = (tmp_path / "results" / "small").iterdir()
    assert pq.read_table(folder / "trials.parquet")["state"].to_pylist() == ["completed"] * 16
