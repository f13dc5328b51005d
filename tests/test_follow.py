"""What lanes and trials say, as the monitor keeps it, and the front as it grows; without Ray."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from test_desk import Clock, desk_of, report

from sweeper import pareto
from sweeper.config import OBJECTIVES
from sweeper.console import Console
from sweeper.desk import Desk
from sweeper.follow import Growth, Lanes, Trials
from sweeper.monitor import Monitor
from sweeper.progress import hypervolume_curve
from sweeper.status import LaneStatus


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def event(kind: str, lane: str, time: float, job: str = "", **more: Any) -> dict[str, Any]:
    return {"type": kind, "lane": lane, "time": time, **({"job": job} if job else {}), **more}


def test_lanes_say_what_they_do_and_how_much_of_their_time() -> None:
    monitor = Monitor()
    with monitor.stage("finalists"):
        lanes = Lanes(monitor, 2, {"a": ("seed 1", "cnn > vit")}.get)
        lanes(event("lane", "0", 0.0))
        lanes(event("lane", "1", 0.0))
        lanes(event("start", "1", 10.0, "a"))
        assert monitor.status().lanes == (
            LaneStatus(lane=0, label="waiting"),
            LaneStatus(lane=1, job="seed 1", label="cnn > vit"),
        )
        lanes(event("report", "1", 20.0, "a", **report(3, 0.9, 16.0)))
        (_, lane) = monitor.status().lanes
        expected = LaneStatus(lane=1, job="seed 1", label="cnn > vit", epoch=3, epochs=10, accuracy=0.9, busy=0.8)
        assert lane == expected
        assert monitor.status().spent_s == 16.0
        lanes(event("report", "1", 21.0, "a", **report(4, float("nan"), 16.0)))
        assert monitor.status().lanes[1].accuracy is None
        lanes(event("end", "1", 30.0, "a", state="completed", train_seconds=36.0))
        lanes(event("end", "", 30.0, "b", state="withdrawn"))
        assert monitor.status().lanes[1] == LaneStatus(lane=1, label="waiting", busy=0.9)
        lanes(event("left", "1", 31.0))
        assert monitor.status().lanes[1].label.startswith("gone")


def train(desk: Desk, follow: Trials, accuracies: list[float], state: str = "completed", seconds: float = 10.0) -> None:
    """One trial on lane 0, as the searcher passes its events on."""
    proposed = desk.propose()
    assert proposed is not None
    name, _ = proposed
    follow(event("start", "0", 0.0, name))
    for epoch, accuracy in enumerate(accuracies, 1):
        said = event("report", "0", float(epoch), name, **report(epoch, accuracy, seconds * epoch))
        desk.report(name, said)
        follow(said)
    error = "TrialFailed: loss is NaN (train.py:7)" if state == "failed" else None
    ended = event("end", "0", 9.0, name, state=state, error=error, train_seconds=seconds * len(accuracies), params=7)
    follow({**ended, **desk.end(name, ended)})


def test_a_search_is_followed_to_its_score_its_front_and_its_cost(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    desk = desk_of(tmp_path, trials=4, front="final")
    with console.search(4) as view:
        follow = Trials(console.monitor, view, desk, workers=1, chance=0.1, device="cpu")
        train(desk, follow, [0.5, 0.8])
        train(desk, follow, [0.5], "failed")
        train(desk, follow, [0.9], seconds=30.0)
        now = console.monitor.status()
    assert now.spent_s == 20 + 10 + 30
    assert now.trials is not None
    assert [(cause.text, cause.count) for cause in now.trials.causes] == [("TrialFailed: loss is NaN (train.py:7)", 1)]
    assert [(point.accuracy, point.is_on_front) for point in now.points] == [(0.8, True), (0.9, True)]
    assert "[2/4] trial 1 failed (TrialFailed: loss is NaN (train.py:7))" in out.getvalue()


def test_what_an_earlier_session_found_is_on_the_front_at_once(tmp_path: Path) -> None:
    console = Console(quiet=True, stream=io.StringIO())
    desk = desk_of(tmp_path, trials=4)
    with console.search(4) as view:
        train(desk, Trials(console.monitor, view, desk, workers=1, chance=0.1, device="cpu"), [0.5, 0.8])
        before = console.monitor.status()
    again = Console(quiet=True, stream=io.StringIO())
    with again.search(4) as view:
        Trials(again.monitor, view, desk_of(tmp_path, trials=4), workers=1, chance=0.1, device="cpu")
        now = again.monitor.status()
    assert (now.points, now.hypervolume) == (before.points, before.hypervolume)
    assert now.hypervolume


@pytest.mark.parametrize("seed", range(5))
def test_the_front_that_grows_is_that_of_all_candidates(tmp_path: Path, seed: int) -> None:
    """Front and hypervolume after every trial, against those of everything that there was."""
    desk, draw = desk_of(tmp_path, trials=100), random.Random(seed)
    growth, chance = Growth(OBJECTIVES, 0.1), 0.1
    assert growth.hypervolume is None
    for _ in range(30):
        new = [(round(draw.random(), 2), round(draw.uniform(0.1, 9), 1)) for _ in range(draw.randrange(4))]
        desk.points += new
        desk.ends.append(len(desk.points))
        growth.take(desk)
        if not desk.points:
            continue
        mask = pareto.front(desk.points, (True, False))
        expected = {point for point, is_on in zip(desk.points, mask, strict=True) if is_on}
        assert {(point.accuracy, point.hours) for point in growth.points if point.is_on_front} == expected
        curve = hypervolume_curve([(0.0, a, h) for a, h in desk.points], reference_accuracy=chance, shared_seconds=0.0)
        assert growth.hypervolume == pytest.approx(curve[-1]["hypervolume"])


def test_of_one_objective_the_front_is_its_best(tmp_path: Path) -> None:
    desk, growth = desk_of(tmp_path, trials=9), Growth({"accuracy": "max"}, 0.1)
    desk.points += [(0.5, 1.0), (0.9, 5.0), (0.7, 2.0)]
    desk.ends += [1, 2, 3]
    growth.take(desk)
    assert [(point.accuracy, point.is_on_front) for point in growth.points] == [(0.9, True), (0.5, False), (0.7, False)]


def test_the_share_of_a_budget_that_is_used(tmp_path: Path) -> None:
    clock = Clock()
    assert desk_of(tmp_path, trials=4).used is None
    desk = desk_of(tmp_path, clock=clock, shared=360.0, gpu_hours=1.0, wall_hours=1.0)
    assert desk.used == pytest.approx(0.1)
    proposed = desk.propose()
    assert proposed is not None
    desk.report(proposed[0], report(1, 0.5, 360.0))
    assert desk.used == pytest.approx(0.2)
    clock.now += 1800.0
    assert desk.used == pytest.approx(0.5)
    clock.now += 36000.0
    assert desk.used == 1.0
