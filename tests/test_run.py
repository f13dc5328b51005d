"""`sweeper run` as its user meets it: a whole small sweep, again, cut short, killed, and with a mistake in the file."""

from __future__ import annotations

import base64
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
import planted_secrets
import pyarrow.parquet as pq
import pytest
import torch
from command_line import NOISE, finish, read_to, start, sweeper
from lane_messages import follow
from small_sweep import SEED, Built, write_space

from sweeper import status
from sweeper.batches import image_split
from sweeper.lane import LanePool
from sweeper.results import COLUMNS
from sweeper.store import Store

TRIALS = 6


@dataclass(frozen=True)
class Finished:
    """A small sweep in `folder`: interrupted by Ctrl-C and then killed by kill -9 in its search, then run to its end.

    `after` holds what the study's journal said of finished trials after each of the three.
    """

    folder: Path
    store: Store
    interrupted: subprocess.CompletedProcess[str]
    killed: subprocess.CompletedProcess[str]
    done: subprocess.CompletedProcess[str]
    after: tuple[Mapping[int, list[Any]], ...]

    @property
    def results(self) -> Path:
        return results_of(self.folder)

    @property
    def command(self) -> tuple[str, ...]:
        return command(self.store)

    def rows(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.results / f"{name}.parquet").to_pylist()
        return found


def results_of(folder: Path) -> Path:
    (path,) = (folder / "results" / "cut").iterdir()
    return path


def command(store: Store) -> tuple[str, ...]:
    return ("run", "space.yaml", "--store", store.uri)


def attributes(folder: Path, name: str) -> dict[int, list[Any]]:
    """What the study's journal says of its trials, in the order in which it was written."""
    found: dict[int, list[Any]] = {}
    entries = [json.loads(line) for line in (results_of(folder) / "journal.log").read_text().splitlines()]
    for number, entry in enumerate(entry for entry in entries if "user_attrs" in entry):  # a trial begins
        if name in entry["user_attrs"]:
            found.setdefault(number, []).append(entry["user_attrs"][name])
    for entry in entries:
        if name in entry.get("user_attr", {}):
            found.setdefault(entry["trial_id"], []).append(entry["user_attr"][name])
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Finished:
    """Its artifacts are those of the tests' small sweep, which it shares."""
    folder = tmp_path_factory.mktemp("sweep")
    trial = {
        "teacher": {"choice": ["cnn", "vit"]},
        "student": {"model": "test_efficientnet"},
        "synthetic": {"source": "tiny", "ratio": {"choice": [0, 1]}, "labels": "distill_only"},
        "loss": {"ce": {"uniform": [0.2, 1]}, "kl": {"weight": 1.0}},
        "train": {"epochs": 8, "batch_size": 16, "epoch_size": 96, "lr": 3e-3},
    }
    search = {"trials": TRIALS, "sampler": "tpe", "scheduler": {"kind": "fifo"}, "front": "final"}
    write_space(folder / "space.yaml", built.generator, name="cut", trial=trial, search=search)

    process = start(folder, *command(built.store), more=planted_secrets.ENVIRONMENT)
    read = read_to(process, r"^\[1/6\] trial")
    os.killpg(process.pid, signal.SIGINT)
    ended = finish(process)
    interrupted = subprocess.CompletedProcess(ended.args, ended.returncode, read + ended.stdout, ended.stderr)
    after = [attributes(folder, "outcome")]

    process = start(folder, *command(built.store), more=planted_secrets.ENVIRONMENT)
    read = read_to(process, rf"^\[{len(after[0]) + 1}/6\] trial")
    process.kill()
    ended = finish(process)
    killed = subprocess.CompletedProcess(ended.args, ended.returncode, read + ended.stdout, ended.stderr)
    after.append(attributes(folder, "outcome"))

    done = finish(start(folder, *command(built.store), more=planted_secrets.ENVIRONMENT))
    after.append(attributes(folder, "outcome"))
    return Finished(folder, built.store, interrupted, killed, done, tuple(after))


# ------------------------------------------------------------------------------------------------- cut short


def test_ctrl_c_says_how_to_go_on(finished: Finished) -> None:
    done = finished.interrupted
    assert done.returncode == 130
    again = f"`sweeper {' '.join(finished.command)}` goes on from here"
    assert done.stderr == f"error: interrupted; everything finished is kept: {again}\n"
    assert not NOISE.search(done.stdout), NOISE.findall(done.stdout)
    assert "teachers   cnn, vit (cached)" in done.stdout
    assert not re.search("^(images|teachers|synthetic images|targets).*:", done.stdout, re.MULTILINE)  # all reused


def test_finished_trials_are_never_trained_again(finished: Finished) -> None:
    """Ctrl-C, then kill -9: the journal has one configuration and one outcome a trial, and those of before stand."""
    assert finished.killed.returncode == -signal.SIGKILL
    first, second, third = finished.after
    assert 1 <= len(first) < len(second) < len(third) == TRIALS
    assert {number: second[number] for number in first} == first
    assert {number: third[number] for number in second} == second
    assert [len(written) for written in third.values()] == [1] * TRIALS
    configs = attributes(finished.folder, "config")
    assert configs.keys() == third.keys()
    assert [len(written) for written in configs.values()] == [1] * TRIALS
    trained_last = re.findall(r"^\[\d/6\] trial (\d+) completed", finished.done.stdout, re.MULTILINE)
    assert sorted(map(int, trained_last)) == sorted(third.keys() - second.keys())
    charged = [row["key"] for row in finished.rows("ledger") if row["stage"] == "train"]
    assert len(charged) == len(set(charged))


def test_its_trials_are_those_of_an_undisturbed_sweep(finished: Finished, built: Built, pool: LanePool) -> None:
    """Trained once more, each in one go: the same to the last bit. `tests/faults` does so with fifty kills."""
    curves = finished.rows("curves")
    for row in finished.rows("trials"):
        name = f"undisturbed {row['trial']}"
        pool.submit(name, built.job(json.loads(row["config"]), seed=SEED))
        reports = [(m["epoch"], m["accuracy_val"], m["loss"]) for m in follow(pool, name) if m["type"] == "report"]
        cut = [(c["epoch"], c["accuracy_val"], c["loss"]) for c in curves if c["trial"] == row["trial"]]
        assert cut == reports


# ------------------------------------------------------------------------------------------------- to the end


def test_the_last_session_ends_with_the_table_and_says_nothing_else(finished: Finished) -> None:
    assert (finished.done.stderr, finished.done.returncode) == ("", 0)
    out = finished.done.stdout
    assert not NOISE.search(out), NOISE.findall(out)
    lines = out.splitlines()
    assert lines[0].startswith("sweeper cut/")
    assert sum(line.startswith(f"search: {TRIALS}/{TRIALS} trials, 0 stopped, 0 failed") for line in lines) == 1
    assert lines[-1].startswith('best student: timm.create_model("local-dir:results/cut/')


def test_the_last_status_says_what_the_results_say(finished: Finished) -> None:
    """Also of what the sessions before had done."""
    now = status.read(finished.results / status.FILE)
    assert now is not None
    assert (now.state, now.label) == (status.FINISHED, f"cut/{finished.results.name}")
    assert now.trials is not None
    assert (now.trials.done, now.trials.failed) == (TRIALS, 0)
    assert now.hypervolume == pytest.approx(finished.rows("hypervolume")[-1]["hypervolume"])
    fact = json.loads((finished.results / "forecast.json").read_text())["fact"]
    assert now.spent_s == pytest.approx(fact["total"]["seconds"])
    spent = {stage.kind: stage.spent_s for stage in now.stages}
    assert spent["search"] == pytest.approx(fact["search"]["seconds"])


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
    assert [trial["trial"] for trial in trials] == sorted(finished.after[-1])
    assert [trial["state"] for trial in trials] == ["completed"] * TRIALS
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
    # the store is the tests' own: pools of others, which have no classes, lie there too
    (images,) = [r for r in finished.store.records() if r.kind == "images" and r.meta["class_names"]]
    table = finished.store.read_table(images)
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
    again = finish(start(finished.folder, *finished.command, code=code))
    assert (again.stderr, again.returncode) == ("[]\n", 0)
    first, _, rest = again.stdout.partition("\n")
    assert first.endswith(": finished earlier; nothing was started")
    assert finished.done.stdout.endswith(rest)
    assert_is_a_table(rest.partition("files:")[0])
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.folder.rglob("*")) == before


def test_quiet_prints_the_table_only(finished: Finished) -> None:
    quiet = sweeper(finished.folder, *finished.command, "--quiet")
    assert (quiet.stderr, quiet.returncode) == ("", 0)
    assert quiet.stdout in finished.done.stdout
    assert_is_a_table(quiet.stdout)


def assert_is_a_table(text: str) -> None:
    assert text.split()[:4] == ["#", "trial", "teacher", "student"]
    assert not re.search(r"files:|best student|trial \d|search|targets|sweeper", text)


def test_no_secret_of_its_environment_is_written_or_shown(finished: Finished) -> None:
    """In a store on a server, and in what a killed session left: `tests/faults/test_secrets.py`."""
    secrets = planted_secrets.ENVIRONMENT.values()
    assert planted_secrets.leaking_files([finished.folder], secrets) == {}
    for session in (finished.interrupted, finished.killed, finished.done):
        assert planted_secrets.leaks(f"{session.stdout}{session.stderr}".encode(), secrets) == []


def test_a_secret_would_be_found(tmp_path: Path) -> None:
    """In the middle of a file, in its name, in a URI, and in base64 wherever it begins."""
    (name, secret), *_ = planted_secrets.ENVIRONMENT.items()
    for number in range(4):
        text = b"x" * number + secret.encode() + b"y" * number
        assert planted_secrets.leaks(text, [secret]) == [secret]
        assert planted_secrets.leaks(base64.b64encode(text), [secret]) == [secret]
    (tmp_path / f"{secret}.txt").touch()
    assert list(planted_secrets.leaking_files([tmp_path], [secret]).values()) == [[secret]]
    assert planted_secrets.leaks(f"{name}=***".encode(), [secret]) == []


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


def test_no_cluster_at_the_address_is_a_mistake(built: Built, tmp_path: Path) -> None:
    write_space(tmp_path / "space.yaml", built.generator)
    done = sweeper(tmp_path, *command(built.store), "--address", "127.0.0.1:1", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --address 127.0.0.1:1: nothing answers there")
    assert not (tmp_path / "results").exists()
    assert len(done.stderr.splitlines()) == 1
