"""Whether early accuracy ranked trials like their final accuracy: what stopping by rungs relies on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

_Name = TypeVar("_Name")


class Agreement(NamedTuple):
    """Spearman's correlation of a rung with the end, over `num_trials`; None below three, or if either is constant."""

    correlation: float | None
    num_trials: int


def rank_agreement(
    curves: Mapping[str, Sequence[Sequence[float]]], levels: Iterable[float], *, column: int = 0
) -> dict[float, Agreement]:
    """How well the order at each level foretold the order at the end: what stopping by rungs relied on.

    Args:
        curves: of trials that ran to their end, and of no others: rows of [epoch, accuracy, loss, device-seconds].
        levels: of the rungs. A trial counts at those that lie before its last report.
        column: of the row that `levels` are about: 0 for epochs, 3 for device-seconds.
    """
    found = {}
    for level in levels:
        early_final = np.array([*early_and_final(curves, level, column=column).values()]).reshape(-1, 2)
        usable = len(early_final) >= 3 and (np.ptp(early_final, axis=0) > 0).all()
        found[level] = Agreement(float(stats.spearmanr(early_final)[0]) if usable else None, len(early_final))
    return found


def early_and_final(
    curves: Mapping[_Name, Sequence[Sequence[float]]], level: float, *, column: int = 0
) -> dict[_Name, tuple[float, float]]:
    """Accuracy at a level and at the end, by trial, of those that trained beyond it; arguments as `rank_agreement`."""
    found = {
        name: (next(row[1] for row in curve if row[column] >= level), curve[-1][1])
        for name, curve in curves.items()
        if curve and curve[-1][column] > level
    }
    return {name: pair for name, pair in found.items() if all(map(math.isfinite, pair))}
