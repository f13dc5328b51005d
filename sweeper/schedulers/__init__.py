"""Schedulers: which running trials go on after each epoch, as Ray Tune's `TrialScheduler`.

A kind is one module with

    class Config(Settings)      kind: Literal["<kind>"] and its own bounded fields; importing it needs no ray
    build(config, max_t, *, objectives, journal)    a ray.tune TrialScheduler for trials of at most `max_t` epochs;
                                objectives: name -> "max" or "min"; journal: the file of its decisions, or None
    expected_share(config, max_t)   may be left out: the share of all epochs that a search trains, for the forecast

A trial reports `TIME_ATTR` (epochs completed, from 1), `SECONDS_ATTR` (device-seconds so far), `METRIC` on the
validation split, more being better, and `COST`, its projected cost when it has run to its end. Tune's
`training_iteration` is not used: it starts again at 1 when a trial resumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

METRIC: Final = "accuracy"
MODE: Final = "max"
COST: Final = "gpu_hours"
TIME_ATTR: Final = "epoch"
SECONDS_ATTR: Final = "train_seconds"
OBJECTIVES: Mapping[str, str] = MappingProxyType({METRIC: MODE, COST: "min"})


def grace_epochs(grace: float, end: float) -> int:
    """The first rung in whole epochs, between 1 and `end`: `grace` is a share of `end` below 1, else epochs."""
    return min(max(1, math.ceil((grace * end if grace < 1 else grace) - 1e-9)), int(end))


def rung_levels(first: float, reduction: float, end: float) -> list[float]:
    """first, first * reduction, ... as long as they lie before `end`."""
    levels: list[float] = []
    while first < end:
        levels.append(first)
        first *= reduction
    return levels


def trained_share(levels: Sequence[float], reduction: float, end: float, keep: float = 0.0) -> float:
    """The share of `end` that a long search trains when the best 1/reduction of a rung's records go on.

    A share `keep` of the trials goes on everywhere. They are on record too, so that the places at the next rung are
    counted from more than those that earned theirs. Holds for rungs that agree with each other on who is better.
    """
    done, earned, share = 0.0, 1.0, 0.0
    for level in (*levels, end):
        alive = earned + keep * (1 - earned)
        share += alive * (level - done) / end
        done, earned = level, alive / reduction
    return share
