"""Tune, Optuna and a lane together: however a trial ends, it ends with an outcome in the study."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import TrialState
from small_sweep import Built, make, space_tree

from sweeper import desk, points, search
from sweeper.desk import candidates_of
from sweeper.errors import RunFailed
from sweeper.lane import LanePool
from sweeper.ledger import Cost
from sweeper.plan import artifact_uses
from sweeper.proposals import EARLY_STOPPED
from sweeper.study import FAILED, Study, spent_seconds
from sweeper.trial import TrialConfig
from sweeper.worker import Job

TRAIN = {"epochs": 4, "batch_size": 16, "epoch_size": 96, "lr": 3e-3}


class Sought:
    """One search on the shared lane, in a folder and with job names of its own."""

    def __init__(
        self,
        built: Built,
        pool: LanePool,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        trial: Any = None,
        **section: Any,
    ) -> None:
        section = {"scheduler": {"kind": "fifo"}, "front": "final", **section}
        changed = {"trial": {**space_tree(built.generator)["trial"], **(trial or {})}, "search": section}
        tree = space_tree(built.generator, **changed)
        config, space, self.plan = make(tree, folder, built.store)
        self.built, self.pool, self.folder, self.config = built, pool, folder, config
        first = [points.flat(space, tree)[0] for tree in config.search.points]
        self.book = Study(folder / "journal.log", config.search, space, config.seed, first)
        self.space = space
        self.events: list[Mapping[str, Any]] = []
        patch.setattr(desk, "job_id", lambda number: f"{folder.name}-{number}")  # the lane's events are shared

    def run(self, shared_seconds: float = 0.0) -> list[dict[str, Any]]:
        """Run the search to its end; returns the outcomes by number."""

        def cost(trial: TrialConfig, seconds: float) -> Cost:
            return Cost.alone(seconds, artifact_uses(self.plan, trial, self.built.records))

        hooks = search.Hooks(
            make_job=lambda trial: self.built.job(trial.model_dump(mode="json")), on_event=self.events.append
        )
        epochs = max(point["train"]["epochs"] for point in self.space.corners())
        own = desk.Desk(self.book, self.config.search, cost, shared_seconds)
        self.ended = search.run(own, self.pool, epochs, hooks, self.folder, self.folder / "rungs.jsonl")
        return [trial.user_attrs["outcome"] for trial in self.book.trials()]

    def configs(self) -> list[TrialConfig]:
        return [TrialConfig.model_validate(trial.user_attrs["config"]) for trial in self.book.trials()]


def test_every_trial_has_an_outcome_and_a_failing_one_stops_nothing(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fifo; the first trial was cut short by an earlier session, and half of the learning rates are absurd."""
    absurd = 1e9
    trial = {"train": {**TRAIN, "lr": {"choice": [3e-3, absurd]}}, "teacher": {"choice": ["cnn", "none"]}}
    sought = Sought(built, pool, tmp_path, monkeypatch, trial=trial, trials=6, sampler="random")
    number, interrupted = sought.book.ask()
    outcomes = sought.run()
    configs = sought.configs()
    assert [trial.number for trial in sought.book.trials()] == list(range(6))
    assert configs[number] == interrupted
    rates = [config.train.lr for config in configs]
    assert 0 < rates.count(absurd) < 6
    for config, outcome, told in zip(configs, outcomes, sought.book.trials(), strict=True):
        if config.train.lr == absurd:
            assert outcome["state"] == "failed"
            assert outcome["error"].startswith("TrialFailed: the loss became nan in epoch 1 of 4")
            assert told.constraints == {EARLY_STOPPED: FAILED}
        else:
            assert (outcome["state"], outcome["error"], outcome["epochs"]) == ("completed", None, 4)
            assert outcome["accuracy_val"] == outcome["curve"][-1][1]
            assert [row[0] for row in outcome["curve"]] == [1, 2, 3, 4]
            assert outcome["cost"]["train"] == outcome["curve"][-1][3] > 0
            assert (outcome["cost"]["adapt"] > 0) == (config.teacher == "cnn")
            assert outcome["params"] > 0
            hours = Cost(**outcome["cost"]).as_hours()["gpu_hours"]
            assert told.state == TrialState.COMPLETE
            assert told.values == [outcome["accuracy_val"], hours]
    ends = [event for event in sought.events if event["type"] == "end" and "config" in event]
    assert sorted(event["trial"] for event in ends) == list(range(6))
    assert sought.ended.why == "6 trials"
    assert sought.ended.busy is not None
    assert 0 < sought.ended.busy <= 1


def test_a_store_that_loses_an_artifact_ends_the_run_and_no_trial(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded as failed, the remaining trials would never be tried again."""
    trial = {"train": TRAIN, "teacher": "none", "loss": {"ce": 1.0}}
    sought = Sought(built, pool, tmp_path, monkeypatch, trial=trial, trials=4, sampler="random")
    made = itertools.count()

    whole = Built.job

    def job(built: Built, config: dict[str, Any]) -> Job:
        found = whole(built, config)
        return found if next(made) < 2 else replace(found, refs=replace(found.refs, images="0" * 64))

    monkeypatch.setattr(Built, "job", job)
    with pytest.raises(RunFailed, match=r"artifact 000000000000 is not in .*; run again to build it"):
        sought.run()
    assert [trial.user_attrs["outcome"]["state"] for trial in sought.book.trials()] == ["completed"] * 2


def test_asha_stops_the_worse_ones_and_charges_them(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = 1e-9
    trial = {
        "teacher": "cnn",
        "student": {"model": "test_efficientnet"},
        "synthetic": {},
        "loss": {"ce": 1.0},
        "train": {**TRAIN, "epochs": 24, "lr": {"choice": [3e-3, hopeless]}},
    }
    scheduler = {"kind": "asha", "grace": 4, "reduction": 4}
    sought = Sought(built, pool, tmp_path, monkeypatch, trial=trial, trials=6, sampler="random", scheduler=scheduler)
    outcomes = sought.run()
    assert len(outcomes) == 6
    assert {outcome["state"] for outcome in outcomes} == {"completed", "stopped"}
    for outcome, told in zip(outcomes, sought.book.trials(), strict=True):
        assert told.state == TrialState.COMPLETE
        assert outcome["epochs"] == len(outcome["curve"])
        assert outcome["cost"]["train"] == outcome["curve"][-1][3] > 0
        violated = told.constraints[EARLY_STOPPED]
        if outcome["state"] == "stopped":
            assert 4 <= outcome["epochs"] < 24
            assert math.isclose(violated, 1 - outcome["epochs"] / 24)
            whole = Cost(**outcome["cost"]).as_hours()["gpu_hours"]
            assert told.values[1] > whole  # what it would have cost at its end: cheap is not what it was
        else:
            assert (outcome["epochs"], violated) == (24, 0.0)


def test_a_budget_of_device_time_ends_the_search(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs then stops at its next epoch, what waits never begins, and nothing stays open."""
    seconds = 0.5
    trial = {"train": TRAIN, "teacher": "none"}
    sought = Sought(built, pool, tmp_path, monkeypatch, trial=trial, gpu_hours=seconds / 3600, sampler="random")
    outcomes = sought.run()
    assert {outcome["state"] for outcome in outcomes} <= {"completed", "stopped"}
    assert spent_seconds(sought.book.trials()) >= seconds
    assert sought.ended.why.endswith("GPU-hours")
    ends = [event["state"] for event in sought.events if event["type"] == "end"]
    assert "stopped" in ends or "withdrawn" in ends, "the next one was waiting"
    assert sought.book.study.get_trials(states=(TrialState.RUNNING,)) == []
    assert len(sought.run()) == len(outcomes)  # a spent budget starts nothing


def test_shared_artifacts_count_into_the_budget(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought = Sought(built, pool, tmp_path, monkeypatch, gpu_hours=1.0, sampler="random")
    assert sought.run(shared_seconds=3600.0) == []


def test_mo_asha_stops_what_is_dominated_and_a_resumed_search_knows_its_rungs(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rungs' records are on disk before a trial is stopped; the second session's trials meet those of the first."""
    hopeless = 1e-9
    trial = {
        "teacher": "cnn",
        "student": {"model": "test_efficientnet"},
        "synthetic": {},
        "loss": {"ce": 1.0},
        "train": {**TRAIN, "epochs": 120, "lr": {"choice": [3e-3, 2e-3, hopeless]}},
    }
    section = {
        "sampler": "tpe",
        "front": "anytime",
        "scheduler": {"kind": "mo_asha", "grace": 4, "reduction": 40, "keep": 0},
        "points": [{"train.lr": rate} for rate in (3e-3, 2e-3, hopeless)],
    }
    first = Sought(built, pool, tmp_path, monkeypatch, trial=trial, trials=1, **section)
    (whole,) = first.run()
    assert (whole["state"], whole["epochs"]) == ("completed", 120)
    sought = Sought(built, pool, tmp_path, monkeypatch, trial=trial, trials=3, **section)
    stopped = sought.run()[2]
    assert stopped["state"] == "stopped", "alone on its rung it would have gone on"
    assert 4 <= stopped["epochs"] < 120
    records = [json.loads(line) for line in (tmp_path / "rungs.jsonl").read_text().splitlines()]
    assert (records[0]["rung"], records[0]["goes_on"]) == (4, True)
    assert (records[-1]["rung"], records[-1]["goes_on"]) == (4, False)
    accuracy, log_hours = records[-1]["values"]
    assert accuracy == stopped["curve"][3][1], "what it had at the rung, not later"
    shared = Cost(**stopped["cost"]).total - stopped["cost"]["train"]
    assert math.exp(log_hours) * 3600 == pytest.approx(shared + stopped["curve"][3][3] / 4 * 120)
    assert len(candidates_of("anytime", stopped)) == stopped["epochs"] - 1, "the last is confirmed by none"


def test_an_actor_that_tune_drops_leaves_its_job_to_the_one_that_it_reuses(
    built: Built, pool: LanePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the dropped actor's last act stopped the job and took its messages away, and the search hung for ever."""
    sought = Sought(built, pool, tmp_path, monkeypatch, trials=1)
    _, config = sought.book.ask()
    pool.submit("shared", built.job(config.model_dump(mode="json")))
    dropped, reused = (search.LaneTrial.__new__(search.LaneTrial) for _ in range(2))
    for actor in (dropped, reused):
        actor.setup({"job": "shared", "mailbox": pool.mailbox, "shared_seconds": 0.0})
    dropped.cleanup()
    results = [reused.step()]
    while not results[-1].get("done"):
        results.append(reused.step())
    assert results[-1]["epoch"] == config.train.epochs
    (end,) = [e for e in ray.get(pool.mailbox.events_since.remote(0)) if e["type"] == "end" and e["job"] == "shared"]
    assert end["state"] == "completed"
