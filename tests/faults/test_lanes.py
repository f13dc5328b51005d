"""Lanes whose workers are killed or hang, and lanes that hardly get to train because so much is stopped."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from broken_losses import Config as Broken
from broken_losses import known
from clusters import workers
from command_line import read_to
from harness import Row, Sweep
from lane_messages import events, follow
from small_sweep import Built

from sweeper.lane import LanePool
from sweeper.slots import LanePlan

pytestmark = pytest.mark.slow
WORKER_KILLS = 6


def test_a_lane_worker_that_is_killed_again_and_again(
    undisturbed: Mapping[str, Any], row: Callable[[str], Row], tmp_path: Path, generator_folder: Path
) -> None:
    line, draw = row("lane worker killed (SIGKILL) during the search"), random.Random(1)
    sweep = Sweep.make(tmp_path, generator_folder)
    process = sweep.start()
    output = read_to(process, r"^teacher vit:")
    while line.tried < WORKER_KILLS and process.poll() is None:
        time.sleep(draw.uniform(0.5, 6))
        for worker in list(workers("TrainWorker"))[:1]:
            line.tried += 1
            line.lost_s.append(max(0.0, time.time() - sweep.last_written()))
            os.kill(worker, signal.SIGKILL)
    out, err = process.communicate()
    assert (err, process.returncode) == ("", 0), output + out
    assert sweep.outcome() == undisturbed
    line.is_equal = True


def test_a_trial_that_says_nothing_any_more_is_started_again(
    built: Built, row: Callable[[str], Row], tmp_path: Path
) -> None:
    line = row("trial that hangs")
    trial = {"teacher": "cnn", "student": {"model": "test_efficientnet"}, "loss": {"ce": 0.5, "kl": {"weight": 1.0}}}
    recipe = {"epochs": 4, "batch_size": 16, "epoch_size": 48, "lr": 3e-3}
    with known(), LanePool(LanePlan(1, 1, 1, 0.0), built.store.uri, tmp_path / "work", stall_s=2.0) as pool:
        hangs = Broken(how="hang", after=8, once=str(tmp_path / "hung"))  # in its third epoch of three steps
        pool.submit("hangs", built.job({**trial, "loss": {"ce": 0.5, "embedding": hangs}, "train": recipe}))
        ended = follow(pool, "hangs")
        workers = [event["incarnation"] for event in events(pool) if event["type"] == "lane"]
    assert ended[-1]["state"] == "completed"
    assert workers == [1, 2]
    assert [m["epoch"] for m in ended[:-1]] == [1, 2, 1, 2, 3, 4]
    line.tried, line.is_equal = 1, True


def test_a_storm_of_stopped_trials(row: Callable[[str], Row], tmp_path: Path, generator_folder: Path) -> None:
    line = row("50 trials, nearly all stopped at their first epoch, two lanes")
    search = {"trials": 50, "sampler": "random", "scheduler": {"kind": "asha", "grace": 1, "reduction": 10}}
    recipe = {"epochs": 30, "batch_size": 16, "epoch_size": 48, "lr": {"loguniform": [1e-4, 1e-2]}}
    trial = {"teacher": "cnn", "student": {"model": "test_efficientnet"}, "loss": {"ce": 0.5}, "train": recipe}
    sweep = Sweep.make(
        tmp_path, generator_folder, search=search, trial=trial, finalists={"count": 1, "seeds": 1, "ablate": False}
    )
    done = sweep.run()
    states = [trial["state"] for trial in sweep.outcome()["trials"]]
    assert len(states) == 50
    assert set(states) <= {"stopped", "completed"}
    assert states.count("stopped") >= 35
    assert len(set(re.findall(r"^\[\d+/50\] trial (\d+) ", done.stdout, re.MULTILINE))) == 50
    line.tried, line.is_equal = states.count("stopped"), True
