"""Scores of replayed searches: hypervolume shares over device time, their intervals, speed-ups, and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from replay import Floats, Log
from scipy import stats

from sweeper import pareto
from sweeper.harvest import WORTH

MOMENTS = np.linspace(0, 1, 201)[1:]  # shares of the budget at which a search is looked at
MAXIMISE = (True, False)  # accuracy, log cost
CHANCE = 0.1  # of ten digits


@dataclass(frozen=True)
class Scale:
    """What a hypervolume is measured by: the reference point, and the whole that a share is of."""

    reference: tuple[float, float]
    whole: float

    @classmethod
    def of(cls, *candidates: tuple[Floats, Floats]) -> Scale:
        """For all candidates that there are, as accuracy and cost: above the least accuracy worth retraining."""
        accuracy, cost = (np.concatenate(part) for part in zip(*candidates, strict=True))
        points = np.column_stack([accuracy, np.log(cost)])
        reference = (CHANCE + WORTH * (float(np.nanmax(accuracy)) - CHANCE), float(points[:, 1].max()))
        return cls(reference, pareto.hypervolume(points, reference, MAXIMISE))

    def shares(self, log: Log, anytime: bool, moments_s: Floats) -> Floats:
        """Of the whole hypervolume, what a search had found by each moment (device-seconds, ascending)."""
        counts = np.ones(len(log.device_R), dtype=bool) if anytime else log.complete_R
        points = np.column_stack([log.accuracy_R, np.log(log.cost_R)])[counts]
        until = np.searchsorted(log.device_R[counts], moments_s, side="right")
        found, front, seen = [], points[:0], 0
        for number in until:
            if number > seen:
                front = np.concatenate([front, points[seen:number]])
                front, seen = front[pareto.front(front, MAXIMISE)], number
            found.append(pareto.hypervolume(front, self.reference, MAXIMISE) / self.whole if len(front) else 0.0)
        return np.array(found)


def interval(values_SM: Floats) -> tuple[Floats, Floats]:
    """Mean over seeds, and half of its 95% interval."""
    num = len(values_SM)
    if num < 2:
        return values_SM.mean(axis=0), np.zeros(values_SM.shape[1])
    half = stats.t.ppf(0.975, num - 1) * values_SM.std(axis=0, ddof=1) / np.sqrt(num)
    return values_SM.mean(axis=0), half


def speedup(shares_SM: Floats, random_SM: Floats) -> float | None:
    """The budget over the time in which the mean first has what random's has at the end; None: not in the budget."""
    reached = np.flatnonzero(shares_SM.mean(axis=0) >= random_SM.mean(axis=0)[-1] - 1e-12)
    return float(1 / MOMENTS[reached[0]]) if len(reached) else None


def speedup_interval(shares_SM: Floats, random_SM: Floats, rounds: int = 1000) -> tuple[float, float]:
    """95% of the speedup by bootstrap over seeds; what is not reached counts as 0."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(shares_SM), size=(rounds, 2, len(shares_SM)))
    found = [speedup(shares_SM[a], random_SM[b % len(random_SM)]) or 0.0 for a, b in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def figure(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], emphasised: Sequence[str], path: Path) -> None:
    """Mean regret with its interval against device time, a panel a table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    drawn, axes = pyplot.subplots(1, len(tables), figsize=(6.2 * len(tables), 5.0), squeeze=False)
    colours = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for axis, (title, found) in zip(axes[0], tables.items(), strict=True):
        for number, (name, row) in enumerate(found.items()):
            is_main = name in emphasised
            mean, band = np.asarray(row["mean"]), np.asarray(row["band"])
            colour = "black" if is_main else colours[number % len(colours)]
            axis.plot(100 * MOMENTS, mean, color=colour, lw=2.2 if is_main else 1.2, label=name, zorder=3 + is_main)
            low = np.maximum(mean - band, 1e-4)
            axis.fill_between(100 * MOMENTS, low, mean + band, color=colour, alpha=0.2 if is_main else 0.07, lw=0)
        axis.set_yscale("log")
        least = min(float(np.min(row["mean"])) for row in found.values())
        axis.set_ylim(max(least / 1.5, 1e-3), 1.0)
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_major_formatter(PercentFormatter())
        axis.set(xlim=(0, 100), xlabel="device time, of the budget", ylabel="hypervolume regret", title=title)
        axis.grid(alpha=0.25, which="both", lw=0.5)
    handles, names = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, names, fontsize=9, frameon=False, ncols=5, loc="lower center")
    drawn.tight_layout(rect=(0, 0.1, 1, 1))
    drawn.savefig(path, dpi=130)
    pyplot.close(drawn)
