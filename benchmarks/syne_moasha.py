"""Syne Tune's multi-objective ASHA as a rival: its own package as shipped, and with its ordering put right.

Salinas et al. 2021, "A multi-objective perspective on jointly tuning hardware and hyperparameters"; Schmucker et al.
2021, arXiv 2106.12639. Needs the extra `benchmarks` (syne-tune 0.16).
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from replay import Floats, Report

from sweeper import pareto


def members(points_NM: Floats) -> NDArray[np.bool_]:
    """What syne-tune's `pareto_efficient` returns, without its loop over all records."""
    return pareto.front(points_NM, False)


def net_ranks(points_NM: Floats, dim: int | None = None) -> NDArray[np.int64]:
    """What its `compute_epsilon_net` returns, each member's rank, without measuring all distances anew at each step."""
    assert dim is not None, "a random first member is not replayed"
    chosen = int(np.argmin(points_NM[:, dim]))
    nearest_N = np.full(len(points_NM), np.inf)
    ranks_N = np.zeros(len(points_NM), dtype=int)
    for rank in range(len(points_NM)):
        ranks_N[chosen] = rank
        nearest_N = np.minimum(nearest_N, np.linalg.norm(points_NM - points_NM[chosen], axis=-1))
        nearest_N[chosen] = -1.0  # not again
        chosen = int(np.argmax(nearest_N))
    return ranks_N


def ordered_priority() -> Any:
    """`NonDominatedPriority` with its two confusions of orders and ranks put right.

    In syne-tune 0.16 `compute_epsilon_net` returns each member's rank, which `nondominated_sort` takes for the order of
    the members (`front[ranks]`, where `front[argsort(ranks)]` is meant); and `NonDominatedPriority` returns that order,
    a list of indices, where `Bracket.on_result` takes entry i for the priority of sample i. Either by itself is a
    permutation for its inverse, so that a newcomer's fate has little to do with what it reported.
    """
    from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

    class Ordered(NonDominatedPriority):  # type: ignore[misc]
        def priority_unsafe(self, objectives: Any) -> Any:
            fronts_N = pareto.ranks(objectives, False)
            order: list[int] = []
            for number in range(fronts_N.max() + 1):
                (front,) = np.nonzero(fronts_N == number)
                order += front[np.argsort(net_ranks(objectives[front], self.dim))].tolist()
            ranks_N = np.empty(len(order), dtype=int)
            ranks_N[order] = np.arange(len(order))
            return ranks_N

    return Ordered()


def rule(epochs: int, *, ordered: bool) -> Callable[[Report], bool]:
    """Whether a trial goes on, by `MOASHA` with its defaults; it would draw configurations, but knows no conditions."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.schedulers.multiobjective import non_dominated_priority
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    # equal results in a tenth of the time, which is nearly all of this benchmark's otherwise
    non_dominated_priority.pareto_efficient = members
    non_dominated_priority.compute_epsilon_net = net_ranks
    scheduler = MOASHA(
        config_space={},
        metrics=["error", "log_cost"],
        time_attr="epoch",
        max_t=epochs,
        multiobjective_priority=ordered_priority() if ordered else None,
    )
    trials: dict[str, Any] = {}

    def goes_on(report: Report) -> bool:
        if report.name not in trials:
            trials[report.name] = Trial(len(trials), {}, datetime.datetime.now())
            scheduler.on_trial_add(trials[report.name])
        result = {
            "epoch": report.epoch,
            "error": 1 - report.accuracy,
            "log_cost": math.log(report.projected_seconds),
        }
        return bool(scheduler.on_trial_result(trials[report.name], result) == "CONTINUE")

    return goes_on
