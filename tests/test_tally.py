"""The score of a running search: its pace, its best, and why trials failed."""

from __future__ import annotations

import pytest

from sweeper.tally import MOST_CAUSES, UNKNOWN, Tally


def test_time_left_counts_this_sessions_pace_only() -> None:
    now = [100.0]
    tally = Tally(total=20, clock=lambda: now[0])
    for trial in range(10):
        tally.count(trial, "completed", 0.5)
    tally.rebase()
    assert tally.seconds_left() is None
    now[0] = 130.0
    for trial in (10, 11, 12):
        tally.count(trial, "stopped", 0.9)
    assert tally.seconds_left() == pytest.approx(70.0)
    assert tally.summary() == "13/20 trials, 3 stopped, 0 failed, best 0.900 (trial 10), 1 min 10 s left"


def test_the_budget_that_ends_first_sets_the_time_left() -> None:
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    tally.use(0.0)
    now[0] = 10.0
    tally.count(0, "completed", 0.5)
    tally.use(0.25)
    assert tally.seconds_left() == pytest.approx(30.0)
    tally.total = 3
    assert tally.seconds_left() == pytest.approx(20.0)


def test_what_an_earlier_session_used_of_a_budget_is_no_part_of_the_pace() -> None:
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    tally.use(0.5)
    assert tally.seconds_left() is None
    now[0] = 10.0
    tally.use(0.6)
    assert tally.seconds_left() == pytest.approx(40.0)


def test_a_failed_or_missing_accuracy_is_never_the_best() -> None:
    tally = Tally()
    for trial, (state, accuracy) in enumerate([("failed", 0.99), ("completed", float("nan")), ("stopped", 0.3)]):
        tally.count(trial, state, accuracy)
    assert tally.best == (0.3, 2)


def test_failures_are_counted_by_what_they_say_but_for_numbers() -> None:
    tally = Tally()
    for number in range(3):
        error = f"OutOfMemoryError: tried to allocate {number}.5 GiB at 0x7f{number}a (train.py:{number})\nand more"
        tally.count(number, "failed", None, error)
    tally.count(3, "failed", None, "TrialFailed: loss is NaN")
    tally.count(4, "failed", None)
    tally.count(5, "completed", 0.5)
    first, *others = tally.trials().causes
    assert (first.text, first.count) == ("OutOfMemoryError: tried to allocate 0.5 GiB at 0x7f0a (train.py:0)", 3)
    assert {(cause.text, cause.count) for cause in others} == {("TrialFailed: loss is NaN", 1), (UNKNOWN, 1)}


def test_of_many_causes_the_most_frequent_are_told() -> None:
    tally = Tally()
    for number, letter in enumerate("abcdefghijabcdefab"):
        tally.count(number, "failed", None, f"cause {letter}")
    assert len(tally.trials().causes) == MOST_CAUSES
    assert [cause.count for cause in tally.trials().causes][:3] == [3, 3, 2]
    assert tally.trials().failed == 18


def test_a_cause_is_shown_without_secrets_and_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_MARKEDtoken")
    tally = Tally()
    tally.count(0, "failed", None, "no \x1b[31mway\x07 in with hf_MARKEDtoken")
    (cause,) = tally.trials().causes
    assert cause.text == "no way in with ***"
