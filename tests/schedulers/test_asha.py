"""ASHA as a trial sees it: rungs in epochs, the best third goes on, the last epoch ends it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from told_trials import Trials

from sweeper.schedulers import asha, fifo, grace_epochs


@pytest.mark.parametrize(
    ("grace", "max_t", "epochs"),
    [(0.1, 40, 4), (0.1, 45, 5), (0.25, 3, 1), (0.01, 10, 1), (5, 40, 5), (50, 40, 40), (1, 40, 1), (0.3, 10, 3)],
)
def test_grace_is_a_share_below_one_and_epochs_from_one(grace: float, max_t: int, epochs: int) -> None:
    assert grace_epochs(grace, max_t) == epochs


def test_the_worst_are_stopped_at_rungs_only() -> None:
    trials = Trials(asha.build(asha.Config(grace=2, reduction=3), max_t=18))
    for name, accuracy in [("a", 0.9), ("b", 0.8), ("c", 0.7)]:
        assert trials.report(name, 1, accuracy) == "CONTINUE"
    assert trials.report("a", 2, 0.9) == "CONTINUE"  # alone at its rung
    assert trials.report("b", 2, 0.8) == "STOP"
    assert trials.report("c", 2, 0.95) == "CONTINUE"
    assert trials.report("d", 1, 0.0) == "CONTINUE"
    assert trials.report("d", 2, 0.1) == "STOP"
    assert trials.report("a", 5, 0.1) == "CONTINUE"  # between the rungs at 2 and 6
    assert trials.report("c", 6, 0.96) == "CONTINUE"
    assert trials.report("a", 6, 0.1) == "STOP"
    assert trials.report("c", 18, 0.97) == "STOP"  # its last epoch


def test_fifo_lets_everyone_go_on() -> None:
    trials = Trials(fifo.build(fifo.Config(), max_t=3))
    assert [trials.report(name, epoch, 0.0) for name in "ab" for epoch in (1, 2)] == ["CONTINUE"] * 4


@pytest.mark.parametrize("wrong", [{"grace": 0}, {"grace": -1}, {"reduction": 1}, {"rungs": 3}])
def test_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        asha.Config.model_validate(wrong)
