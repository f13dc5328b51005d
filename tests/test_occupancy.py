"""The lanes' share of training, on events with times that are easy to add up."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.occupancy import Occupancy


def follow(occupancy: Occupancy, *events: tuple[str, str, str, float, float | None]) -> Occupancy:
    for kind, lane, job, time, seconds in events:
        more: dict[str, Any] = {} if seconds is None else {"train_seconds": seconds}
        occupancy.follow({"type": kind, "lane": lane, "job": job, "time": time, **more})
    return occupancy


def test_gaps_between_jobs_and_inside_them_count_and_the_start_of_a_lane_does_not() -> None:
    found = follow(
        Occupancy(),
        ("start", "0", "a", 100.0, None),
        ("end", "0", "a", 110.0, 9.0),  # 1 s of reading and reporting
        ("start", "0", "b", 112.0, None),  # 2 s without a job
        ("start", "1", "c", 150.0, None),  # this lane came late, which is not the search's fault
        ("end", "0", "b", 120.0, 8.0),
        ("end", "1", "c", 160.0, 10.0),
    )
    assert found.share == pytest.approx((9 + 8 + 10) / (20 + 10))


def test_without_an_end_nothing_is_known() -> None:
    assert follow(Occupancy(), ("start", "0", "a", 1.0, None)).share is None


def test_seconds_of_all_workers_and_of_earlier_sessions() -> None:
    assert follow(Occupancy(4), ("start", "0", "a", 0.0, None), ("end", "0", "a", 10.0, 36.0)).share == 0.9
    resumed = follow(Occupancy(), ("start", "0", "a", 0.0, None), ("end", "0", "a", 10.0, 500.0))
    assert resumed.share == 1.0


def test_a_job_that_a_restarted_lane_takes_up_again_and_one_that_never_began() -> None:
    found = follow(
        Occupancy(),
        ("start", "0", "a", 0.0, None),
        ("end", "", "never", 5.0, None),
        ("end", "0", "a", 20.0, 15.0),
    )
    assert found.share == 0.75


def test_a_lanes_own_share_counts_the_job_under_way() -> None:
    occupancy = Occupancy()
    assert occupancy.of("0") is None
    follow(occupancy, ("start", "0", "a", 10.0, None))
    assert occupancy.of("0") is None
    follow(occupancy, ("report", "0", "a", 20.0, 6.0))
    assert occupancy.of("0") == pytest.approx(0.6)
    follow(occupancy, ("end", "0", "a", 30.0, 14.0))
    assert occupancy.of("0") == pytest.approx(0.7)
    follow(
        occupancy, ("start", "0", "b", 40.0, None), ("report", "0", "b", 50.0, 10.0), ("start", "1", "c", 40.0, None)
    )
    assert occupancy.of("0") == pytest.approx(24 / 40)
    assert occupancy.share == pytest.approx(14 / 20)
