"""Importance against functions whose truth is known: what matters comes first, and noise is called noise."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from sweeper import importance
from sweeper.importance import MAX_TRIALS, MIN_TRIALS, assess, importances
from sweeper.ledger import Cost
from sweeper.space import Space

SPACE = Space(
    {
        "teacher": {"choice": ["cnn", "vit", "none"]},
        "student": {"model": {"choice": ["small", "large"]}, "init": "random"},
        "loss": {
            "embedding": {
                "kind": {"choice": ["none", "kdep", "info_nce"], "when": {"teacher": ["cnn", "vit"]}},
                "weight": {"loguniform": [0.1, 10], "when": {"loss.embedding.kind": ["kdep", "info_nce"]}},
            }
        },
        "train": {"epochs": {"randint": [5, 40]}, "lr": {"loguniform": [1e-4, 1e-1]}},
    }
)
WEIGHT, LR = "loss.embedding.weight", "train.lr"
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "teacher": CategoricalDistribution(["cnn", "vit", "none"]),
    "student.model": CategoricalDistribution(["small", "large"]),
    "loss.embedding.kind": CategoricalDistribution(["none", "kdep", "info_nce"]),
    WEIGHT: FloatDistribution(0.1, 10, log=True),
    "train.epochs": IntDistribution(5, 39),
    LR: FloatDistribution(1e-4, 1e-1, log=True),
}
Score = Callable[[dict[str, Any], random.Random], float]


def by_lr(params: dict[str, Any], draw: random.Random) -> float:
    return 0.8 - 0.2 * abs(math.log10(params[LR]) + 2.5) + 0.01 * draw.gauss(0, 1)


def by_weight(params: dict[str, Any], draw: random.Random) -> float:
    gain = 0.3 - 0.3 * abs(math.log10(params[WEIGHT])) if WEIGHT in params else 0.0
    return 0.5 + gain + 0.01 * draw.gauss(0, 1)


def by_nothing(params: dict[str, Any], draw: random.Random) -> float:
    return 0.5 + 0.1 * draw.gauss(0, 1)


def by_size(params: dict[str, Any], draw: random.Random) -> float:
    """Seconds of training."""
    return params["train.epochs"] * (4.0 if params["student.model"] == "large" else 1.0) * (1 + 0.02 * draw.gauss(0, 1))


def drawn(draw: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def suggest(path: str, domain: Any) -> Any:
        kinds = {"choice": lambda: draw.choice(domain.options), "randint": lambda: draw.randint(5, 39)}
        logs = (math.log(domain.low or 1), math.log(domain.high or 1))
        found[path] = kinds.get(domain.kind, lambda: math.exp(draw.uniform(*logs)))()
        return found[path]

    SPACE.sample(suggest)
    return found


def outcome(accuracy: float | None, train: float, state: str = "completed", **more: Any) -> dict[str, Any]:
    cost = {"adapt": 1.0, "targets": 2.0, "synthetic": 0.0, "train": train}
    found = {"state": state, "error": None, "epochs": 10, "num_epochs": 10, "accuracy_val": accuracy, "cost": cost}
    return {**found, "pretrain_seconds": 0.0, **more}


def trial(params: dict[str, Any], ended: dict[str, Any]) -> FrozenTrial:
    attributes = {"outcome": ended}
    return create_trial(
        params=params, distributions={p: DISTRIBUTIONS[p] for p in params}, value=0.0, user_attrs=attributes
    )


def search(count: int, score: Score = by_lr, seconds: Score = by_size, seed: int = 0) -> list[FrozenTrial]:
    draw = random.Random(seed)
    points = [drawn(draw) for _ in range(count)]
    return [trial(params, outcome(score(params, draw), seconds(params, draw))) for params in points]


def shares(records: list[dict[str, Any]], objective: str) -> dict[str, float]:
    return {r["parameter"]: r["importance"] for r in records if r["objective"] == objective}


@pytest.mark.parametrize("count", [24, 100])
def test_one_that_matters_has_nearly_all(count: int) -> None:
    found = shares(importances(search(count, by_lr), SPACE), "accuracy")
    assert next(iter(found)) == LR
    assert found[LR] > (0.85 if count == 100 else 0.6)


def test_what_chance_would_show_is_taken_off() -> None:
    """As the evaluator has them, the other five have a quarter together over these few trials."""
    found = [shares(importances(search(24, by_lr, seed=seed), SPACE), "accuracy") for seed in range(4)]
    assert sum(each[LR] for each in found) / 4 > 0.8
    assert any(0.0 in each.values() for each in found)


def test_one_with_a_condition_matters_where_it_counts() -> None:
    trials = search(100, by_weight)
    records = importances(trials, SPACE)
    found = shares(records, "accuracy")
    assert next(iter(found)) == WEIGHT
    assert found[WEIGHT] > 0.5
    active = {r["parameter"]: r["trials"] for r in records if r["objective"] == "accuracy"}
    assert active[WEIGHT] == sum(WEIGHT in t.params for t in trials) < active["loss.embedding.kind"] < 100
    assert active[LR] == 100


def test_cost_has_its_own_causes() -> None:
    found = shares(importances(search(100, by_lr), SPACE), "gpu_hours")
    assert set(list(found)[:2]) == {"train.epochs", "student.model"}
    assert found["train.epochs"] + found["student.model"] > 0.8


def test_nothing_is_claimed_of_noise() -> None:
    claims = [assess(search(40, by_nothing, seed=seed), SPACE) for seed in range(5)]
    silent = [c for c in claims if "accuracy" in c.reasons]
    assert len(silent) >= 4, "one in twenty may pass"
    assert all(shares(c.records, "accuracy") == {} for c in silent)
    assert silent[0].reasons["accuracy"] == "no parameter stands out from chance over 40 trials"


@pytest.mark.parametrize("count", [24, 60])
def test_records_have_their_columns_and_sum_to_one(count: int) -> None:
    trials = search(count, by_lr)
    records = importances(trials, SPACE)
    assert {tuple(record) for record in records} == {("objective", "parameter", "importance", "trials")}
    assert list(dict.fromkeys(r["objective"] for r in records)) == ["accuracy", "gpu_hours"]
    for objective in ("accuracy", "gpu_hours"):
        found = shares(records, objective)
        assert set(found) == set(DISTRIBUTIONS)
        assert sum(found.values()) == pytest.approx(1)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert min(found.values()) >= 0


def test_stopped_trials_say_which_values_were_bad() -> None:
    """All with a bad learning rate are stopped: without them its spread among the others says nothing."""
    draw = random.Random(3)
    trials = []
    for _ in range(100):
        params = drawn(draw)
        is_bad = abs(math.log10(params[LR]) + 2.5) > 0.4
        early = {"state": "stopped", "epochs": 2} if is_bad else {}
        accuracy = 0.3 + 0.05 * draw.random() if is_bad else 0.8 + 0.05 * draw.random()
        trials.append(trial(params, outcome(accuracy, 10.0 + draw.random(), **early)))
    assert shares(importances(trials, SPACE), "accuracy")[LR] > 0.8
    survivors = [t for t in trials if t.user_attrs["outcome"]["state"] == "completed"]
    assert len(survivors) > MIN_TRIALS
    assert shares(importances(survivors, SPACE), "accuracy").get(LR, 0.0) < 0.5


def test_a_stopped_trials_cost_is_that_of_the_full_run() -> None:
    ended = outcome(0.5, 40.0, "stopped", epochs=2, num_epochs=20, pretrain_seconds=10.0)
    assert importance.projected_hours(ended) * 3600 == pytest.approx(3 + 10 + 30 / 2 * 20)
    whole = outcome(0.5, 40.0, pretrain_seconds=10.0)
    assert importance.projected_hours(whole) == pytest.approx(Cost(**whole["cost"]).total / 3600)


def test_failed_trials_and_those_without_an_accuracy_are_left_out() -> None:
    trials = search(40, by_lr)
    params = trials[0].params
    broken = [
        outcome(0.99, 1.0, "failed"),
        outcome(None, 1.0, "stopped", epochs=0),
        outcome(math.nan, 1.0),
        outcome(0.9, 1.0, "stopped", epochs=0),
    ]
    assert importances([*trials, *(trial(params, ended) for ended in broken)], SPACE) == importances(trials, SPACE)


@pytest.mark.parametrize("count", [0, MIN_TRIALS - 1])
def test_too_few_trials_give_a_reason(count: int) -> None:
    found = assess(search(count), SPACE)
    assert found.records == []
    words = f"{count} trials ended, too few to tell (8 are needed)"
    assert found.reasons == {"accuracy": words, "gpu_hours": words}


def test_equal_outcomes_and_nothing_varied_give_a_reason() -> None:
    same = [trial(t.params, outcome(0.5, 10.0)) for t in search(20)]
    assert set(assess(same, SPACE).reasons.values()) == {"all trials are equal in it"}
    constant = [trial({}, outcome(0.5 + i / 100, float(i + 1))) for i in range(20)]
    assert set(assess(constant, Space({"teacher": "cnn"})).reasons.values()) == {"nothing was varied"}


def test_many_trials_are_thinned_out() -> None:
    records = importances(search(10_000, by_lr), SPACE)
    assert shares(records, "accuracy")[LR] > 0.9
    assert {r["trials"] for r in records if r["parameter"] == LR} == {MAX_TRIALS}


def test_equal_trials_give_equal_records_in_another_process() -> None:
    """Strings hash otherwise there, and Optuna keeps names in sets."""
    code = (
        "import test_importance as t; from sweeper.importance import importances;"
        "print(importances(t.search(40, t.by_lr), t.SPACE))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == str(importances(search(40, by_lr), SPACE))
    assert printed.stderr == ""
