"""Asynchronous successive halving on accuracy: stops a trial that is not among the best 1/reduction at a rung.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934, in the stopping form of Ray
Tune's `AsyncHyperBandScheduler`: rungs at grace, grace * reduction, ... epochs, decided at each trial's own arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeper.registry import Settings
from sweeper.schedulers import (
    LATE_EPOCHS,
    METRIC,
    MODE,
    OBJECTIVES,
    TIME_ATTR,
    Grace,
    Reduction,
    grace_epochs,
    rung_levels,
    trained_share,
)

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Config(Settings):
    """`grace`: the first rung, as a share of the epochs when below 1, else in epochs. `reduction`: eta."""

    kind: Literal["asha"] = "asha"
    grace: Grace = 0.1
    reduction: Reduction = 3.0


def levels(config: Config, max_t: int) -> list[float]:
    """The rungs in epochs, ascending."""
    return rung_levels(grace_epochs(config.grace, max_t), config.reduction, max_t)


def expected_share(config: Config, max_t: int, trials: int | None = None) -> float:
    """The share of the epochs that a search trains: about 1/reduction of the trials goes on at each rung."""
    return trained_share(
        levels(config, max_t), config.reduction, max_t, late=LATE_EPOCHS if trials else 0.0, trials=trials
    )


def build(
    config: Config, max_t: int, *, objectives: Mapping[str, str] = OBJECTIVES, journal: Path | None = None
) -> TrialScheduler:
    """Tune's ASHA over one bracket, since further brackets only dilute the stopping (arXiv 1810.05934, section 3).

    It looks at accuracy whatever the objectives are, and writes no journal: a resumed search begins with empty rungs.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr=TIME_ATTR,
        metric=METRIC,
        mode=MODE,
        max_t=max_t,
        grace_period=grace_epochs(config.grace, max_t),
        reduction_factor=config.reduction,
        brackets=1,
    )
