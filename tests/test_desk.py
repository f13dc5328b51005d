"""The searcher's desk, without Ray: budgets, what schedulers hear, what is a candidate, how trials end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from samples import space_of, sweep_config

from sweeper.config import SearchConfig
from sweeper.desk import GAIN_TRIALS, Desk, candidates_of, told
from sweeper.ledger import Cost
from sweeper.study import Study
from sweeper.trial import TrialConfig

SPACE = space_of(sweep_config())
SHARED = 8.0


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def cost(config: TrialConfig, seconds: float) -> Cost:
    return Cost(adapt=SHARED, train=seconds)


def desk_of(folder: Path, *, shared: float = 0.0, clock: Clock | None = None, **search: Any) -> Desk:
    config = SearchConfig.model_validate({"sampler": "random", **search})
    return Desk(Study(folder / "journal", config, SPACE, 0), config, cost, shared, clock or Clock())


def report(epoch: int, accuracy: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": 10, "accuracy_val": accuracy, "loss": 0.1, "train_seconds": seconds, **more}


def trained(desk: Desk, accuracy: float = 0.5, epochs: int = 10, state: str = "completed", pace: float = 1.0) -> int:
    """Propose a trial and bring it to its end; returns its number."""
    proposed = desk.propose()
    assert proposed is not None
    name, _ = proposed
    for epoch in range(1, epochs + 1):
        desk.report(name, report(epoch, accuracy * epoch / epochs, pace * epoch))
    found = desk.end(name, {"state": state, "error": None, "train_seconds": pace * epochs, "params": 7})
    return int(found["trial"])


class TestReports:
    def test_a_scheduler_hears_the_cost_of_the_full_run(self) -> None:
        heard = told(report(2, 0.7, 5.0), shared_seconds=11.0)
        assert heard == {"epoch": 2, "accuracy": 0.7, "gpu_hours": pytest.approx(36 / 3600), "train_seconds": 5.0}

    def test_pretraining_is_paid_once(self) -> None:
        assert told(report(1, 0.7, 23.0, pretrain_seconds=20.0), 0.0)["gpu_hours"] == pytest.approx(50 / 3600)

    def test_a_restarted_worker_repeats_epochs(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=1)
        name, _ = desk.propose() or ("", None)
        for epoch, seconds in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 4.0), (3, 5.0)):
            desk.report(name, report(epoch, 0.1 * epoch, seconds))
        desk.end(name, {"state": "stopped", "error": None, "train_seconds": 5.0})
        (trial,) = desk.book.trials()
        assert [(row[0], row[3]) for row in trial.user_attrs["outcome"]["curve"]] == [(1, 1.0), (2, 4.0), (3, 5.0)]

    def test_an_end_that_knows_the_whole_curve_is_believed(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=1)
        name, _ = desk.propose() or ("", None)
        desk.report(name, report(3, 0.3, 3.0))
        whole = [[1, 0.1, 1.0, 1.0], [2, 0.2, 1.0, 2.0], [3, 0.3, 1.0, 3.0]]
        desk.end(name, {"state": "stopped", "error": None, "train_seconds": 3.0, "curve": whole})
        assert desk.book.trials()[0].user_attrs["outcome"]["curve"] == whole


class TestBudgets:
    def test_trials(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=2)
        trained(desk)
        trained(desk, state="failed", epochs=1)
        assert desk.propose() is None
        assert desk.why_ended == "2 trials"
        assert desk.why_at_once == "", "trials that run are waited for"

    def test_device_time_counts_shared_artifacts_and_running_trials(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, gpu_hours=100 / 3600, shared=80.0)
        trained(desk, pace=1.0)
        assert desk.why_ended == ""
        name, _ = desk.propose() or ("", None)
        desk.report(name, report(1, 0.1, 9.0))
        assert desk.why_at_once == ""
        desk.report(name, report(2, 0.1, 10.0))
        assert desk.why_at_once == desk.why_ended == "0.0277778 GPU-hours"
        assert desk.propose() is None

    def test_the_clock(self, tmp_path: Path) -> None:
        clock = Clock()
        desk = desk_of(tmp_path, clock=clock, wall_hours=1)
        trained(desk)
        clock.now += 3599
        assert desk.why_ended == ""
        clock.now += 2
        assert desk.why_at_once == "1 hours on the clock"

    @pytest.mark.parametrize("jump", [-1e6, 0.0, 1e6])
    def test_the_clock_of_all_sessions_whatever_the_date_says(self, tmp_path: Path, jump: float) -> None:
        clock = Clock()
        first = desk_of(tmp_path, clock=clock, wall_hours=1)
        clock.now += 3000
        trained(first)
        clock.now += jump
        again = desk_of(tmp_path, clock=clock, wall_hours=1)
        clock.now += 500
        trained(again)
        assert again.why_ended == ""
        clock.now += 200
        assert desk_of(tmp_path, clock=clock, wall_hours=1).why_ended == "", "nobody was there in these 200 s"
        assert again.why_at_once == "1 hours on the clock"

    @pytest.mark.parametrize(("front", "running"), [("anytime", True), ("final", False)])
    def test_a_target(self, tmp_path: Path, front: str, running: bool) -> None:
        desk = desk_of(tmp_path, trials=99, target=0.9, front=front)
        trained(desk, accuracy=0.89)
        name, _ = desk.propose() or ("", None)
        desk.report(name, report(3, 0.93, 3.0))
        assert desk.why_at_once == "", "one epoch may be lucky"
        desk.report(name, report(4, 0.91, 4.0))
        assert (desk.why_at_once != "") == running, "what stands on no front has not reached it"
        desk.end(name, {"state": "completed", "error": None, "train_seconds": 4.0})
        assert desk.why_at_once == "the target, accuracy 0.9"

    def test_an_expected_gain(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=999, min_gain=0.005, startup=5)
        for number in range(5 + GAIN_TRIALS):
            assert desk.why_ended == "", "too early to tell"
            trained(desk, accuracy=0.5 + 0.01 * number)
        assert desk.expected_gain() > 0.005
        assert desk.why_ended == ""
        while not desk.why_ended:
            trained(desk, accuracy=0.3)
        assert desk.why_ended == "an expected gain below 0.005 a trial"
        assert len(desk.book.trials()) < 5 + 2 * GAIN_TRIALS + 1

    def test_an_expected_gain_is_that_of_the_last_trials_each(self, tmp_path: Path) -> None:
        """Areas of staircases by hand: heights are accuracies, widths are logs below twice the dearest cost."""
        desk = desk_of(tmp_path, trials=999, startup=1, front="final")
        for number in range(1 + GAIN_TRIALS):
            trained(desk, accuracy=0.4 if number == 0 else 0.8, pace=1.0 if number == 0 else 2.0)
        cheap, dear, end = (math.log(seconds) for seconds in (SHARED + 10, SHARED + 20, 2 * (SHARED + 20)))
        before = 0.4 * (end - cheap)
        now = before + 0.4 * (end - dear)
        assert desk.expected_gain() == pytest.approx((now - before) / GAIN_TRIALS / now)
        trained(desk, accuracy=0.8, pace=1.0)
        before, now = now, 0.8 * (end - cheap)  # before: the first two points, the others being twins of the second
        assert desk.expected_gain() == pytest.approx((now - before) / GAIN_TRIALS / now)

    def test_what_an_earlier_session_spent_counts(self, tmp_path: Path) -> None:
        first = desk_of(tmp_path, gpu_hours=20 / 3600, target=0.95)
        trained(first, accuracy=0.8)
        again = desk_of(tmp_path, gpu_hours=20 / 3600, target=0.95)
        assert (again.spent, again.best, again.asked) == (10.0, 0.8, 1)
        assert again.points == first.points
        trained(again)
        assert again.propose() is None

    def test_interrupted_trials_come_first_even_when_a_budget_is_spent(self, tmp_path: Path) -> None:
        first = desk_of(tmp_path, trials=1)
        proposed = first.propose()
        again = desk_of(tmp_path, trials=1)
        assert again.why_ended == ""
        assert again.propose() == proposed
        assert again.propose() is None


class TestEnds:
    def test_a_trial_that_never_began_leaves_no_outcome_and_its_place(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=1)
        name, _ = desk.propose() or ("", None)
        assert desk.end(name, {"state": "withdrawn", "error": None}) == {}
        assert desk.book.trials() == []
        assert desk.book.study.get_trials(states=(TrialState.RUNNING,)) == []
        assert desk.propose() is not None

    def test_a_trial_that_failed_before_its_first_epoch(self, tmp_path: Path) -> None:
        desk = desk_of(tmp_path, trials=1)
        name, _ = desk.propose() or ("", None)
        found = desk.end(name, {"state": "failed", "error": "OutOfMemoryError", "train_seconds": 3.0})
        assert (found["accuracy_val"], found["cost"].train) == (None, 3.0)
        assert desk.points == []


@pytest.mark.parametrize(
    ("front", "state", "epochs"),
    [
        ("final", "completed", [5]),
        ("final", "stopped", []),
        ("final", "failed", []),
        ("anytime", "completed", [1, 4, 5]),
        ("anytime", "stopped", [1, 4]),
        ("anytime", "failed", [1, 4]),
    ],
)
def test_candidates(front: str, state: str, epochs: list[int]) -> None:
    """An epoch counts with what the next one confirms; one beside a loss that was not finite does not count."""
    accuracies = [0.3, 0.2, math.nan, 0.3, 0.4]
    curve = [[i, accuracy, 9.0, 4.0 * i] for i, accuracy in enumerate(accuracies, 1)]
    cost = {"adapt": 1.0, "targets": 5.0, "synthetic": 2.0, "train": 20.0}
    found = candidates_of(front, {"state": state, "curve": curve, "cost": cost})
    expected = {1: 0.2, 4: 0.3, 5: 0.4}
    assert found == [(e, expected[e], pytest.approx((8 + 4 * e) / 3600)) for e in epochs]
