"""Multi-objective ASHA as Tune's scheduler: rungs, immunity, one objective alone, a resumed run."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler
from told_trials import Trials

from sweeper import registry
from sweeper.errors import RunFailed
from sweeper.schedulers import OBJECTIVES, asha, mo_asha, trained_share

ACCURACY = {"accuracy": "max"}
NO_KEEP = mo_asha.Config(reduction=3, grace=2, keep=0)


def accuracies(seed: int, count: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).random(count)]


@pytest.mark.parametrize("kind", registry.kinds("schedulers"))
def test_every_kind_is_built_alike(kind: str, tmp_path: Path) -> None:
    module = registry.load("schedulers", kind)
    for objectives in (OBJECTIVES, ACCURACY):
        found = module.build(module.Config(), 10, objectives=objectives, journal=tmp_path / "rungs.jsonl")
        assert isinstance(found, TrialScheduler)


@pytest.mark.parametrize(
    ("config", "max_t", "expected"),
    [
        ({}, 40, [4, 12, 36]),
        ({"grace": 5}, 40, [5, 15]),
        ({"grace": 1, "max": 9}, 40, [1, 3]),
        ({"grace": 1, "max": 100}, 40, [1, 3, 9, 27, 81]),
        ({"grace": 1, "reduction": 1.2}, 4, [1, 2, 3]),
        ({"grace": 1, "reduction": 2.5}, 7, [1, 3]),
        ({"grace": 50}, 40, []),
        ({}, 1, []),
        ({"unit": "seconds", "max": 200}, 40, [20, 60, 180]),
        ({"unit": "seconds", "max": 200, "grace": 30}, 40, [30, 90]),
        ({"unit": "seconds", "max": 200, "grace": 300}, 40, []),
    ],
)
def test_levels(config: dict[str, Any], max_t: int, expected: list[float]) -> None:
    assert mo_asha.levels(
        mo_asha.Config.model_validate({"grace": 0.1, "reduction": 3, **config}), max_t
    ) == pytest.approx(expected)


def test_the_same_accuracy_for_more_hours_is_stopped() -> None:
    trials = Trials(mo_asha.build(NO_KEEP, 18))
    assert trials.report("a", 2, 0.9, 2.0) == "CONTINUE"
    assert trials.report("b", 2, 0.9, 3.0) == "STOP"
    assert trials.report("c", 2, 0.5, 0.1) == "CONTINUE"  # worse, and the cheapest
    assert trials.report("d", 1, 0.0, 9.0) == "CONTINUE"  # before the rung
    assert trials.report("e", 18, 0.95, 1.0) == "CONTINUE"  # its last epoch: it ends by itself
    assert [record.trial for record in trials.scheduler.rungs.records(6)] == ["e"]


def test_cost_is_spread_in_logs() -> None:
    """After the ends (100 h, 1 h), 9 h is farther from both than 50 h is in logs; in hours it would lie beside 1 h."""
    trials = Trials(mo_asha.build(mo_asha.Config(grace=1, keep=0, reduction=2), 18))
    arrivals = [("a", 0.9, 100.0), ("b", 0.1, 1.0), ("c", 0.7, 50.0), ("d", 0.35, 9.0)]
    answers = [trials.report(name, 1, accuracy, hours) for name, accuracy, hours in arrivals]
    assert answers == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]  # places: 1, 2, 2, 3
    assert trials.scheduler.rungs.records(1)[0].values == (0.9, math.log(100.0))


@pytest.mark.parametrize(
    "bad", [{"accuracy": math.nan}, {"accuracy": None}, {"gpu_hours": 0.0}, {"gpu_hours": math.inf}, {"gpu_hours": -1}]
)
def test_a_bad_or_missing_objective_is_last(bad: Mapping[str, Any]) -> None:
    good = {"epoch": 2, "accuracy": 0.9, "gpu_hours": 0.1}
    for first in ({**good, **bad}, {key: value for key, value in good.items() if key not in bad}):
        trials = Trials(mo_asha.build(NO_KEEP, 18))
        assert trials.tell("bad", first) == "STOP"
        assert trials.tell("worse", {"epoch": 2, "accuracy": 0.1, "gpu_hours": 5.0}) == "CONTINUE"


def test_a_result_without_a_time_decides_nothing() -> None:
    trials = Trials(mo_asha.build(NO_KEEP, 18))
    assert trials.tell("a", {"accuracy": math.nan}) == "CONTINUE"
    assert trials.scheduler.rungs.records(2) == []


def test_one_objective_is_a_plain_sort() -> None:
    """Goes on iff at most n / eta of those before it are better."""
    trials = Trials(mo_asha.build(NO_KEEP, 18, objectives=ACCURACY))
    seen: list[float] = []
    for i, accuracy in enumerate(accuracies(0, 200)):
        seen.append(accuracy)
        expected = sorted(seen, reverse=True).index(accuracy) <= len(seen) / 3
        assert (trials.report(f"trial-{i:05d}", 2, accuracy, math.nan) == "CONTINUE") == expected


def test_cost_alone_is_minimised() -> None:
    trials = Trials(mo_asha.build(NO_KEEP, 18, objectives={"gpu_hours": "min"}))
    assert [trials.report(n, 2, None, h) for n, h in (("a", 3.0), ("b", 2.0), ("c", 4.0))] == [
        "CONTINUE",
        "CONTINUE",
        "STOP",
    ]


@pytest.mark.parametrize("reduction", [3.0, 4.0])
def test_one_objective_is_tune_s_asha(reduction: float) -> None:
    """Decision by decision, but where Tune's interpolated percentile leaves the place next to the cut to chance.

    With p better records among n, Tune lets go on for p <= (n - 2) / eta, and stops for p >= (n - 2) / eta + 1.
    """
    config: dict[str, Any] = {"grace": 1, "reduction": reduction}
    ours = Trials(
        mo_asha.build(mo_asha.Config.model_validate({"keep": 0, "reduction": 3, **config}), 100, objectives=ACCURACY)
    )
    tunes = Trials(asha.build(asha.Config(**config), 100))
    seen: dict[int, list[float]] = {}
    compared = {"CONTINUE": 0, "STOP": 0}
    num_reports = 0
    levels = [int(level) for level in ours.scheduler.rungs.levels]
    assert len(levels) > 2
    for i, quality in enumerate(accuracies(1, 300)):
        for epoch, noise in zip(levels, accuracies(1000 + i, len(levels)), strict=True):
            accuracy = quality + 0.1 * noise
            rung = seen.setdefault(epoch, [])
            better, count = sum(other > accuracy for other in rung), len(rung) + 1
            rung.append(accuracy)
            ours_says, tune_says = (t.report(f"trial-{i:05d}", epoch, accuracy) for t in (ours, tunes))
            num_reports += 1
            sure = (count - 2) / reduction
            if count == 1 or better <= sure or better >= sure + 1:
                assert ours_says == tune_says
                compared[ours_says] += 1
            if ours_says == "STOP":
                break
    assert sum(compared.values()) > 0.9 * num_reports
    assert min(compared.values()) > 100


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_the_share_that_is_kept(keep: float) -> None:
    names = [f"trial-{i:05d}" for i in range(10_000)]
    kept = {name for name in names if mo_asha.is_immune(name, keep)}
    assert len(kept) / 10_000 == pytest.approx(keep, abs=4 * math.sqrt(keep * (1 - keep) / 10_000))
    assert kept <= {name for name in names if mo_asha.is_immune(name, min(1.0, keep + 0.1))}


def test_which_are_kept_is_pinned() -> None:
    """Another hash would change what a resumed run does with the trials that it had begun."""
    assert [i for i in range(40) if mo_asha.is_immune(f"trial-{i:05d}", 0.1)] == [3, 15, 21]


def test_the_immune_go_on_and_are_on_record() -> None:
    trials = Trials(mo_asha.build(mo_asha.Config(reduction=3, grace=1, keep=0.3), 18))
    names = [f"trial-{i:05d}" for i in range(30)]
    answers = {name: trials.report(name, 1, -i, 1.0 + i) for i, name in enumerate(names)}
    assert [name for name in names[1:] if answers[name] == "CONTINUE"] == [
        name for name in names[1:] if mo_asha.is_immune(name, 0.3)
    ]
    records = trials.scheduler.rungs.records(1)
    assert [record.trial for record in records] == names
    assert [record.goes_on for record in records] == [True] + 29 * [False]


def test_rungs_in_seconds() -> None:
    trials = Trials(mo_asha.build(mo_asha.Config(reduction=3, unit="seconds", grace=25, max=100, keep=0), 18))
    trials.report("a", 2, 0.9, 1.0)  # 20 s
    assert trials.scheduler.rungs.records(25) == []
    assert trials.report("a", 3, 0.9, 1.0) == "CONTINUE"  # 30 s
    assert trials.report("b", 2, 0.8, 2.0) == "CONTINUE"
    assert trials.report("b", 3, 0.8, 2.0) == "STOP"
    assert [r.trial for r in trials.scheduler.rungs.records(25)] == ["a", "b"]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Cut after any report: a second scheduler over the journal answers the rest as one that saw everything."""
    draw = np.random.default_rng(0)
    events = [
        (f"trial-{i:05d}", epoch, float(draw.random()), float(draw.lognormal())) for epoch in (2, 6) for i in range(8)
    ]
    config = mo_asha.Config(reduction=3, grace=2, keep=0.2)
    whole = Trials(mo_asha.build(config, 18, journal=tmp_path / "whole"))
    answers = [whole.report(*event) for event in events]
    assert set(answers) == {"CONTINUE", "STOP"}
    for cut in range(len(events) + 1):
        journal = tmp_path / str(cut)
        first = Trials(mo_asha.build(config, 18, journal=journal))
        told = [first.report(*event) for event in events[:cut]]
        second = Trials(mo_asha.build(config, 18, journal=journal))
        assert told + [second.report(*event) for event in events[cut:]] == answers
        assert [second.report(*event) for event in events] == answers  # asked again
        assert cut == 0 or journal.read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(RunFailed, match="is not of this search"):
        mo_asha.build(mo_asha.Config(reduction=3, grace=3), 18, journal=tmp_path / "whole")


def test_tune_can_pickle_it() -> None:
    """Tune writes its configuration, and the scheduler with it, to the run's folder."""
    trials = Trials(mo_asha.build(NO_KEEP, 18))
    trials.report("a", 2, 0.9, 2.0)
    again = pickle.loads(cloudpickle.dumps(trials.scheduler))
    assert again.rungs.records(2) == trials.scheduler.rungs.records(2)
    assert "2: 1, 6: 0" in again.debug_string()


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("reduction", [2.0, 3.0])
def test_the_expected_share_is_what_halving_trains(keep: float, reduction: float) -> None:
    """Many trials at a rung together, whose order never changes: the best 1/eta go on, and the immune."""
    config = mo_asha.Config(grace=1, keep=keep, reduction=reduction)
    draw = np.random.default_rng(0)
    quality, immune = draw.random(200_000), draw.random(200_000) < keep
    here, epochs, done = np.ones(200_000, dtype=bool), 0.0, 0.0
    for level in [*mo_asha.levels(config, 27), 27]:
        epochs += here.sum() * (level - done)
        done = level
        here &= immune | (quality >= np.quantile(quality[here], 1 - 1 / reduction))
    assert mo_asha.expected_share(config, 27) == pytest.approx(epochs / (27 * 200_000), rel=0.01)


def test_expected_share_by_hand() -> None:
    assert mo_asha.expected_share(mo_asha.Config(grace=0.1, reduction=3, keep=1), 40) == pytest.approx(1.0)
    assert mo_asha.expected_share(mo_asha.Config(grace=0.1, reduction=3, keep=0), 40) == asha.expected_share(
        asha.Config(), 40
    )
    assert mo_asha.expected_share(mo_asha.Config(reduction=3, keep=0, grace=10, max=15), 40) == pytest.approx(
        1 / 4 + 1 / 3 * 3 / 4
    )
    seconds = mo_asha.Config(reduction=3, keep=0, unit="seconds", max=100, grace=0.25)
    assert mo_asha.expected_share(seconds, 40) == pytest.approx(1 / 4 + 1 / 3 * 1 / 2 + 1 / 9 * 1 / 4)
    # one rung, half immune: 1/2 of the trials and 1/3 of the other half go on to the end
    assert trained_share([5], 3.0, 10, keep=0.5) == pytest.approx(1 / 2 + 1 / 2 * (1 / 2 + 1 / 2 * 1 / 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"grace": 0},
        {"reduction": 1},
        {"keep": 1.1},
        {"keep": -0.1},
        {"max": 0},
        {"spread": "net"},
        {"unit": "steps"},
        {"unit": "seconds"},
    ],
)
def test_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mo_asha.Config.model_validate(wrong)
