"""Asynchronous successive halving on accuracy: stops a trial that is not among the best 1/reduction at a rung.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934, in the stopping form of Ray
Tune's `AsyncHyperBandScheduler`: rungs at grace, grace * reduction, ... epochs, decided at each trial's own arrival.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sweeper.registry import Settings
from sweeper.schedulers import METRIC, MODE, TIME_ATTR

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Config(Settings):
    """`grace`: the first rung, as a share of the epochs when below 1, else in epochs. `reduction`: eta."""

    kind: Literal["asha"] = "asha"
    grace: Annotated[float, Field(gt=0)] = 0.1
    reduction: Annotated[float, Field(gt=1)] = 3.0


def grace_epochs(config: Config, max_t: int) -> int:
    """The first rung in whole epochs, between 1 and `max_t`."""
    share = config.grace * max_t if config.grace < 1 else config.grace
    return min(max(1, math.ceil(share - 1e-9)), max_t)


def expected_share(config: Config, max_t: int) -> float:
    """The share of the epochs that a long search trains: 1/reduction of the trials goes on at each rung."""
    done, alive, share = 0.0, 1.0, 0.0
    rung: float = grace_epochs(config, max_t)
    while rung < max_t:
        share += alive * (rung - done) / max_t
        done, alive, rung = rung, alive / config.reduction, rung * config.reduction
    return share + alive * (max_t - done) / max_t


def build(config: Config, max_t: int) -> TrialScheduler:
    """Tune's ASHA over one bracket, since further brackets only dilute the stopping (arXiv 1810.05934, section 3)."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr=TIME_ATTR,
        metric=METRIC,
        mode=MODE,
        max_t=max_t,
        grace_period=grace_epochs(config, max_t),
        reduction_factor=config.reduction,
        brackets=1,
    )
