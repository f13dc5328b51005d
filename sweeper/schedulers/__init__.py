"""Schedulers: which running trials go on after each epoch, as Ray Tune's `TrialScheduler`.

A kind is one module with

    class Config(Settings)      kind: Literal["<kind>"] and its own bounded fields; importing it needs no ray
    build(config, max_t, *, objectives, journal)    a ray.tune TrialScheduler for trials of at most `max_t` epochs;
                                objectives: name -> "max" or "min"; journal: the file of its decisions, or None
    expected_share(config, max_t, trials=None)      may be left out: the share of all epochs that a search of so many
                                trials trains, None for a long one that hears of each stop at once; for the forecast

A trial reports `TIME_ATTR` (epochs completed, from 1), `SECONDS_ATTR` (device-seconds so far), `METRIC` on the
validation split, more being better, and `COST`, its projected cost when it has run to its end. Tune's
`training_iteration` is not used: it starts again at 1 when a trial resumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import Field

METRIC: Final = "accuracy"
MODE: Final = "max"
COST: Final = "gpu_hours"
TIME_ATTR: Final = "epoch"
SECONDS_ATTR: Final = "train_seconds"
# Rungs ascend from the first one by the factor: near 0 and near 1 they would be without number.
Grace = Annotated[float, Field(ge=1e-6, le=1e9)]
Reduction = Annotated[float, Field(ge=1.01, le=1e9)]
LATE_EPOCHS: Final = 1.0  # lanes do not wait for the answer to a report: a stop ends the epoch that has begun since
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


def trained_share(
    levels: Sequence[float],
    reduction: float,
    end: float,
    keep: float = 0.0,
    *,
    late: float = 0.0,
    trials: int | None = None,
) -> float:
    """The share of `end` that a search trains when the best 1/reduction of a rung's records go on.

    A share `keep` of the trials goes on everywhere. They are on record too, so that the places at the next rung are
    counted from more than those that earned theirs. Holds for rungs that agree with each other on who is better.

    Args:
        late: what a trial trains on after it was stopped. trials: of the search, by the rule of `rungs.Rungs`, which
            lets more of the first ones pass; None for infinitely many.
    """
    done, earned, before, share = 0.0, 1.0, 1.0, 0.0
    for level in (*levels, end):
        alive = earned + keep * (1 - earned)
        share += alive * (level - done) / end + (before - alive) * min(late, level - done) / end
        done, before, earned = level, alive, alive * _passing_share(reduction, trials and round(trials * alive))
    return share


def _passing_share(reduction: float, records: int | None) -> float:
    """Of a rung's records those that go on when each is as likely as any to have any place among those before it."""
    if not records:
        return 1 / reduction
    return math.fsum(min(1.0, (n // reduction + 1) / n) for n in range(1, records + 1)) / records
