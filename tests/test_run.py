"""`sweeper run` as its user meets it: a whole small sweep, again, cut short, killed, and with a mistake in the file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import NOISE, finish, start, sweeper
from small_sweep import write_space

from sweeper.batches import image_split
from sweeper.results import COLUMNS
from sweeper.store import Store

TRIALS = 6


@dataclass(frozen=True)
class Finished:
    """A whole small sweep that was run in `folder`."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    @property
    def results(self) -> Path:
        (path,) = (self.folder / "results" / "small").iterdir()
        return path

    def rows(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.results / f"{name}.parquet").to_pylist()
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, generator_folder: Path) -> Finished:
    folder = tmp_path_factory.mktemp("sweep")
    write_space(folder / "space.yaml", generator_folder)
    return Finished(folder, sweeper(folder, "run", "space.yaml"))


# ------------------------------------------------------------------------------------------------- to the end


def test_a_whole_sweep_says_what_it_does_and_nothing_else(finished: Finished) -> None:
    assert (finished.done.stderr, finished.done.returncode) == ("", 0)
    out = finished.done.stdout
    assert not NOISE.search(out), NOISE.findall(out)
    lines = out.splitlines()
    assert lines[0].startswith("sweeper small/")
    ended = [re.fullmatch(r"\[\d/6\] trial (\d+) (completed|stopped): .*, accuracy .*, .* s", line) for line in lines]
    assert sorted(int(match[1]) for match in ended if match) == list(range(TRIALS))
    for stage in ("images: 667", "teachers: 2", "synthetic images (tiny): 20", "targets (cnn, vit): 120", "search: "):
        assert any(line.startswith(stage) for line in lines), stage
    assert lines[-1].startswith('best student: timm.create_model("local-dir:results/small/')


def test_every_file_of_the_results_is_there(finished: Finished) -> None:
    names = {path.name for path in finished.results.iterdir()}
    assert names >= {
        "space.yaml", "trials.parquet", "curves.parquet", "ledger.parquet", "pareto.csv", "pareto.parquet",
        "pareto.md", "pareto.tex", "report.html", "pareto.png", "models", "environment.json", "journal.log",
    }  # fmt: skip
    assert ".work" not in names
    (row,) = finished.rows("pareto")
    assert list(row)[: len(COLUMNS)] == list(COLUMNS)
    assert (row["rank"], row["seeds"], row["device"]) == (1, 2, "cpu")
    parts = ("adapt", "targets", "synthetic", "train")
    assert row["gpu_hours"] == pytest.approx(sum(row[f"gpu_hours_{part}"] for part in parts))
    assert row["gpu_hours_train"] > 0
    trials = finished.rows("trials")
    assert [trial["trial"] for trial in trials] == list(range(TRIALS))
    assert {trial["state"] for trial in trials} <= {"completed", "stopped"}
    assert all(trial["gpu_hours_train"] > 0 for trial in trials)
    curves = finished.rows("curves")
    for trial in trials:
        assert [r["epoch"] for r in curves if r["trial"] == trial["trial"]] == list(range(1, trial["epochs"] + 1))
    assert row["trial"] in [trial["trial"] for trial in trials if trial["on_front"]]


def test_the_model_loads_with_timm_alone_and_gives_its_accuracy_back(finished: Finished) -> None:
    import timm

    (row,) = finished.rows("pareto")
    folder = finished.results / "models" / str(row["trial"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    store = Store(str(finished.folder / ".sweeper" / "store"))
    (images,) = [record for record in store.records() if record.kind == "images"]
    table = store.read_table(images)
    test = image_split(table.filter(np.array(table["split"].to_pylist()) == "test"), images.meta["image_size"])
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        predicted = model((test.images_BCHW.float() / 255 - mean) / std).argmax(dim=1)
    accuracy = float((predicted == test.labels_B).double().mean())
    assert accuracy == pytest.approx(row["model_accuracy_test"], abs=1e-9)


def test_a_finished_space_prints_its_table_without_ray(finished: Finished) -> None:
    code = """
import sys
from sweeper.cli import main
main(prog_name="sweeper", standalone_mode=False)
print(sorted({"ray", "torch", "optuna", "timm", "diffusers"} & set(sys.modules)), file=sys.stderr)
"""
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.folder.rglob("*"))
    again = finish(start(finished.folder, "run", "space.yaml", code=code), patience_s=15)  # the bound
    assert (again.stderr, again.returncode) == ("[]\n", 0)
    first, _, rest = again.stdout.partition("\n")
    assert first.endswith(": finished earlier; nothing was started")
    assert finished.done.stdout.endswith(rest)
    assert_is_a_table(rest.partition("files:")[0])
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.folder.rglob("*")) == before


def test_quiet_prints_the_table_only(finished: Finished) -> None:
    quiet = sweeper(finished.folder, "run", "space.yaml", "--quiet")
    assert (quiet.stderr, quiet.returncode) == ("", 0)
    assert quiet.stdout in finished.done.stdout
    assert_is_a_table(quiet.stdout)


def assert_is_a_table(text: str) -> None:
    assert text.split()[:4] == ["#", "trial", "teacher", "student"]
    assert not re.search(r"files:|best student|trial \d|search|targets|sweeper", text)


# ------------------------------------------------------------------------------------------------- cut short


def read_to(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """The lines of its output up to one that matches. The test's own deadline is that of the whole process."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"it ended without {pattern!r}: {lines} {process.communicate()[1]}")


def attributes(journal: Path, name: str) -> dict[int, list[Any]]:
    """What the study's journal says of its trials, in the order in which it was written."""
    found: dict[int, list[Any]] = {}
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        if name in entry.get("user_attr", {}):
            found.setdefault(entry["trial_id"], []).append(entry["user_attr"][name])
    return found


def test_a_run_goes_on_where_it_was_cut_short(finished: Finished, generator_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, both in the middle of the search, then to the end: nothing finished is trained again."""
    trial = {
        "teacher": {"choice": ["cnn", "vit"]},
        "student": {"model": "test_efficientnet"},
        "loss": {"ce": {"uniform": [0.2, 1]}, "kl": {"weight": 1.0}},
        "train": {"epochs": 12, "batch_size": 16, "epoch_size": 96, "lr": 3e-3},
    }
    search = {"trials": TRIALS, "sampler": "tpe"}
    write_space(tmp_path / "space.yaml", generator_folder, name="cut", trial=trial, search=search)
    command = ["run", "space.yaml", "--store", str(finished.folder / ".sweeper" / "store")]

    interrupted = start(tmp_path, *command)
    lines = read_to(interrupted, r"^\[\d/6\] trial")
    assert not [line for line in lines if line.startswith(("images:", "synthetic images", "targets"))]  # reused
    os.killpg(interrupted.pid, signal.SIGINT)
    done = finish(interrupted)
    assert done.returncode == 130
    assert done.stderr.startswith("error: interrupted; everything finished is kept: `sweeper run space.yaml --store ")
    assert done.stderr.endswith("` goes on from here\n")
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr
    (folder,) = (tmp_path / "results" / "cut").iterdir()
    first = attributes(folder / "journal.log", "outcome")
    assert 1 <= len(first) < TRIALS

    killed = start(tmp_path, *command)
    read_to(killed, rf"^\[{len(first) + 1}/6\] trial")
    killed.kill()
    assert finish(killed).returncode == -signal.SIGKILL
    second = attributes(folder / "journal.log", "outcome")
    assert len(first) < len(second) < TRIALS

    last = sweeper(tmp_path, *command, "--quiet")
    assert (last.stderr, last.returncode) == ("", 0)
    assert_is_a_table(last.stdout)
    third = attributes(folder / "journal.log", "outcome")
    assert sorted(third) == list(range(TRIALS))
    for trials, later in ((first, second), (second, third)):
        assert {number: later[number] for number in trials} == trials
    assert [len(written) for written in third.values()] == [1] * TRIALS
    assert [len(written) for written in attributes(folder / "journal.log", "config").values()] == [1] * TRIALS
    assert not (folder / ".work").exists()
    states = pq.read_table(folder / "trials.parquet")["state"].to_pylist()
    assert states == ["completed"] * TRIALS


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trials": {"teacher": "cnn"}}, "trials"),
        ({"search": {"trials": 0}}, "search.trials"),
        ({"dataset": {"kind": "image_folder", "root": "not/here"}}, "not/here"),
    ],
)
def test_a_mistake_in_the_file_ends_with_2_and_writes_nothing(
    tmp_path: Path, generator_folder: Path, change: Mapping[str, Any], expected: str
) -> None:
    write_space(tmp_path / "space.yaml", generator_folder, **change)
    done = sweeper(tmp_path, "run", "space.yaml")
    assert (done.stdout, done.returncode) == ("", 2)
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_no_cluster_at_the_address_is_a_mistake(finished: Finished, generator_folder: Path, tmp_path: Path) -> None:
    write_space(tmp_path / "space.yaml", generator_folder)
    store = str(finished.folder / ".sweeper" / "store")
    done = sweeper(tmp_path, "run", "space.yaml", "--store", store, "--address", "127.0.0.1:1", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --address 127.0.0.1:1: Ray could not be reached")
    assert len(done.stderr.splitlines()) == 1
