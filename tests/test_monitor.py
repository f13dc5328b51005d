"""What a run tells its monitor, and the status that comes of it, on a clock that only the test moves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from statuses import busy

from sweeper import status
from sweeper.errors import InputError
from sweeper.monitor import Expected, Monitor
from sweeper.stage import WINDOW_S, Stage
from sweeper.status import LaneStatus, Point, StageStatus, Status

GPU = "NVIDIA H100 80GB HBM3"


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def stage_of(monitor: Monitor, kind: str) -> StageStatus:
    (found,) = [stage for stage in monitor.status().stages if stage.kind == kind]
    return found


# ------------------------------------------------------------------------------------------------- stages


def test_a_stages_rate_is_that_of_late_and_its_whole_time_once_it_has_ended() -> None:
    clock = Clock()
    stage = Stage("images", 1000, "images", clock)
    assert (stage.rate, stage.seconds_left) == (None, None)
    for _ in range(100):  # 1 a second, and then 5
        clock.now += 1
        stage.advance(1, 10)
    for _ in range(round(WINDOW_S) + 2):
        clock.now += 1
        stage.advance(5, 10)
    assert stage.rate == pytest.approx(5.0)
    assert stage.seconds_left == pytest.approx((1000 - 260) / 5)
    clock.now += 10 * WINDOW_S
    assert stage.rate is not None
    assert stage.rate < 1.0, "nothing has come for a long time"
    stage.close(status.DONE)
    clock.now += 100.0
    assert stage.rate == pytest.approx(260 / (100 + 32 + 300))
    assert (stage.bytes, stage.seconds, stage.seconds_left) == (1320, 432.0, None)


def test_what_an_earlier_build_left_has_no_part_in_a_rate() -> None:
    clock = Clock()
    stage = Stage("targets", 1000, "views", clock)
    clock.now += 2.0  # to look at what is there
    stage.advance(900, is_new=False)
    assert (stage.rate, stage.seconds_left) == (None, None)
    for _ in range(8):
        clock.now += 1.0
        stage.advance(10, 100)
    assert (stage.done, stage.rate, stage.seconds_left) == (980, 10.0, 2.0)
    stage.close(status.DONE)
    assert stage.rate == 8.0


def test_stages_of_one_kind_are_one_line() -> None:
    clock = Clock()
    monitor = Monitor(clock)
    for name, total in (("images", 10), ("images (pool)", 30)):
        with monitor.stage(name, total, "images") as stage:
            clock.now += 2.0
            stage.advance(total, 100)
            stage.spend(3.0, "cpu")
    (found,) = monitor.status().stages
    expected = StageStatus(
        kind="images",
        state=status.DONE,
        unit="images",
        done=40,
        total=40,
        rate=15.0,
        bytes=200,
        seconds=4.0,
        spent_s=6.0,
    )
    assert found == expected


def test_a_stage_that_was_left_says_so() -> None:
    monitor = Monitor()

    def leave() -> None:
        with monitor.stage("targets (cnn)", 5, "views"):
            assert stage_of(monitor, "targets").state == status.WORKING
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert stage_of(monitor, "targets").state == status.LEFT


# ------------------------------------------------------------------------------------------------- the forecast


def expecting(clock: Clock, price: float | None = None, there: frozenset[str] = frozenset()) -> Monitor:
    monitor = Monitor(clock)
    expected = {"images": Expected(0.0, 10.0), "adapt": Expected(30.0, 40.0), "search": Expected(600.0, 300.0)}
    expected |= {"targets": Expected(0.0, 0.0)}
    monitor.expect("digits/abc", expected, GPU, there=there, price=lambda device: price if device == GPU else None)
    return monitor


def test_stages_ahead_wait_and_those_with_nothing_to_do_are_left_out() -> None:
    monitor = expecting(Clock(), there=frozenset({"images"}))
    assert [(stage.kind, stage.state) for stage in monitor.status().stages] == [
        ("adapt", status.WAITING),
        ("search", status.WAITING),
    ]


def test_the_time_left_is_that_of_this_stage_and_what_was_forecast_for_those_that_follow() -> None:
    clock = Clock()
    monitor = expecting(clock)
    assert monitor.status().seconds_left == 350.0
    with monitor.stage("images", 100, "images") as stage:
        clock.now += 4.0
        assert monitor.status().seconds_left == 6.0 + 340.0, "by the forecast, as long as nothing is done"
        clock.now += 10.0
        assert monitor.status().seconds_left is None, "the forecast was wrong, and there is no rate yet"
        clock.now -= 10.0
        stage.advance(50)
        assert monitor.status().seconds_left == 4.0 + 340.0, "at its rate"
    assert monitor.status().seconds_left == 340.0
    monitor.end(status.FINISHED)
    assert monitor.status().seconds_left is None
    assert Monitor(clock).status().seconds_left is None


def test_what_is_spent_is_charged_once_and_lanes_count_while_they_train() -> None:
    monitor = expecting(Clock(), price=2.0)
    with monitor.stage("adapt", 1, "teacher") as stage:
        stage.spend(36.0, GPU)
    with monitor.search(4, GPU):
        monitor.lane(LaneStatus(lane=0, job="trial 0"), 72.0)
        now = monitor.status()
        assert (now.spent_s, stage_of(monitor, "search").spent_s) == (108.0, 72.0)
        assert now.dollars == pytest.approx(108 / 3600 * 2)
        monitor.lane(LaneStatus(lane=0))
        monitor.spend("search", 80.0, GPU)
        assert monitor.status().spent_s == 116.0
    now = monitor.status()
    assert (now.spent_s, now.forecast_s, now.lanes) == (116.0, 630.0, ())
    assert now.forecast_dollars == pytest.approx(630 / 3600 * 2)


def test_without_the_price_of_every_device_there_are_no_dollars() -> None:
    assert expecting(Clock()).status().dollars is None
    monitor = expecting(Clock(), price=2.0)
    monitor.spend("adapt", 5.0, "another device")
    now = monitor.status()
    assert (now.dollars, now.forecast_dollars) == (None, pytest.approx(0.35))


# ------------------------------------------------------------------------------------------------- the search


def test_trials_lanes_and_the_front() -> None:
    clock = Clock()
    monitor = expecting(clock)
    with monitor.search(10, GPU):
        monitor.earlier([(0, "completed", 0.9, None), (1, "failed", None, "broken")])
        monitor.lanes(3)
        clock.now += 500.0  # until the lanes are up
        monitor.rebase()
        monitor.lane(LaneStatus(lane=4, job="trial 7", label="a", busy=0.5))
        clock.now += 60.0
        assert monitor.trial(2, "stopped", 0.5) == "3/10"
        front = (Point(hours=1.0, accuracy=0.9, is_on_front=True),)
        monitor.front(front, 0.25)
        now = monitor.status()
        search = stage_of(monitor, "search")
    assert [lane.label for lane in now.lanes] == ["starting"] * 4 + ["a"]
    assert (now.points, now.hypervolume, now.device) == (front, 0.25, GPU)
    assert now.trials is not None
    assert (now.trials.done, now.trials.failed, now.trials.best_trial) == (3, 1, 0)
    assert (search.done, search.total, search.rate) == (3, 10, pytest.approx(1 / 60)), "its own trial sets the pace"
    assert search.seconds_left == pytest.approx(7 * 60)
    assert stage_of(monitor, "search").seconds_left is None


def test_lines_are_numbered_and_the_last_ones_kept() -> None:
    monitor = Monitor()
    for number in range(100):
        monitor.say(f"line {number}\x07\nof it")
    now = monitor.status()
    assert (now.num_lines, now.lines[-1]) == (100, "line 99 of it")
    assert len(now.lines) < 50


# ------------------------------------------------------------------------------------------------- the file


def test_a_status_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    now = replace(busy(3, label="Straße 蒸馏"), state=status.FAILED, reason="why", lines=("a", "b"), num_lines=7)
    (tmp_path / status.FILE).write_bytes(status.to_json(now))
    assert status.read(tmp_path / status.FILE) == now
    assert status.read(tmp_path / "none") is None


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    tree = json.loads(status.to_json(busy(1)))
    tree["lanes"][0]["temperature"] = 71
    (tmp_path / status.FILE).write_text(json.dumps({**tree, "weather": "fair"}))
    assert status.read(tmp_path / status.FILE) == busy(1)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"stages": 5}', b'{"seconds": "soon"}', b"\xff\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / status.FILE).write_bytes(data)
    with pytest.raises(InputError, match=r"status\.json: is damaged"):
        status.read(tmp_path / status.FILE)


def test_the_file_is_there_from_the_beginning_and_says_how_it_ended(tmp_path: Path) -> None:
    monitor, path = Monitor(), tmp_path / "a" / status.FILE
    monitor.expect("a/b", {}, "cpu")
    with status.written(monitor.status, path):
        monitor.end(status.INTERRUPTED)
    found = status.read(path)
    assert found is not None
    assert (found.label, found.state) == ("a/b", status.INTERRUPTED)
    assert [one.name for one in path.parent.iterdir()] == [status.FILE]


def test_a_place_that_can_not_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with status.written(Monitor().status, tmp_path / "file" / status.FILE):
        pass


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_what_is_not_finite_is_no_status(figure: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        status.to_json(Status(seconds=figure))
