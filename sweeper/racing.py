"""What is behind the choice of finalists: who is worth retraining, who need not run again, who is on the true front.

Statistics only, on plain numbers: who trains, and where outcomes are kept, is `finalists`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sweeper import pareto

CONFIDENCE = 0.95
MIN_SEEDS = 2  # one difference has no spread
ROUNDING = 1e-12  # accuracies are shares of images: what differs by less is equal
NO_COST = 1e-12  # less than any clock shows: costs are compared in logs


def spread(accuracies: ArrayLike, costs: ArrayLike, count: int) -> list[int]:
    """The first point of a front, and the `count - 1` others that cover the most of the plane together with it.

    Hypervolume in accuracy and log cost, both scaled to the front's range, from a reference point that lies
    1 / (count - 1) of the range beyond the worst values: then the points lie evenly on a straight front, both of its
    ends among them (Ishibuchi et al. 2018). Exact, by a recursion over the last point chosen (Kuhn et al. 2016).

    Args:
        accuracies, costs: of points of which none beats another, most accurate (and costly) first.

    Returns:
        Indices, ascending; all where there are no more than `count`.
    """
    if np.size(accuracies) <= count:
        return list(range(np.size(accuracies)))
    values = np.column_stack([accuracies, -np.log(np.maximum(costs, NO_COST))])
    span = np.ptp(values, axis=0)
    height, reach = ((values - values.min(axis=0)) / np.where(span > 0, span, 1.0) + 1 / max(count - 1, 1)).T
    gain = height[:, None] * (reach[:, None] - reach[None, :])  # of point i, chosen next after j
    gain[np.triu_indices(len(values))] = -np.inf
    area = np.where(np.arange(len(values)) == 0, height * reach, -np.inf)  # the most of so many points, i the last
    steps = []
    for _ in range(count - 1):
        total = area[None, :] + gain
        steps.append(total.argmax(axis=1))
        area = total.max(axis=1)
    found = [int(area.argmax())]
    for before in reversed(steps):
        found.append(int(before[found[-1]]))
    return found[::-1]


def near_ties(accuracies: ArrayLike, costs: ArrayLike, num_images: int) -> list[int]:
    """Points whose accuracy is within its standard error of the best at no higher cost; the smallest gap first.

    The standard error is that of a share p of `num_images`: sqrt(p (1 - p) / num_images). Returns indices; points that
    nothing beats are among them where p is neither 0 nor 1.
    """
    accuracy: NDArray[np.float64] = np.asarray(accuracies, dtype=float)
    cost: NDArray[np.float64] = np.asarray(costs, dtype=float)
    order = np.argsort(cost)
    best = np.maximum.accumulate(accuracy[order])
    gap = best[np.searchsorted(cost[order], cost, side="right") - 1] - accuracy
    is_near = gap < np.sqrt(accuracy * (1 - accuracy) / num_images)
    return [int(i) for i in np.argsort(gap, kind="stable") if is_near[i]]


def p_value(rival: Sequence[float], own: Sequence[float], resolution: float = 0.0) -> float:
    """How well the differences seed by seed agree with `rival` being no more accurate than `own`: a paired t-test.

    One-sided, of at least two seeds that both have run. Accuracies are multiples of `resolution`, one image, so that
    equal differences are no wonder: the spread is taken to be that at the least. Without any the sign decides: 0 where
    the rival is ahead by the same amount every time, else 1.
    """
    ahead = np.subtract(rival, own)
    spread_of_one = max(float(ahead.std(ddof=1)), resolution)
    if spread_of_one < ROUNDING:
        return 0.0 if ahead[0] > ROUNDING else 1.0
    return float(stats.t.sf(ahead.mean() / spread_of_one * math.sqrt(len(ahead)), len(ahead) - 1))


def beaten_by(
    racer: str,
    accuracies: Mapping[str, Sequence[float]],
    costs: Mapping[str, float],
    level: float,
    resolution: float = 0.0,
) -> str | None:
    """The racer that costs no more than this one and is more accurate beyond doubt; None where there is none.

    Args:
        accuracies: by racer, of the same seeds in the same order.
        costs: by racer.
        level: how often an unbeaten racer may be called beaten, all of its rivals together (Bonferroni: the first step
            of Holm's procedure, and the only one that matters to whether *some* rival is better).
        resolution: of the accuracies, as for `p_value`.
    """
    rivals = [other for other in accuracies if other != racer and costs[other] <= costs[racer]]
    found = {other: p_value(accuracies[other], accuracies[racer], resolution) for other in rivals}
    best = min(found, key=found.__getitem__, default=None)
    return best if best is not None and found[best] * len(rivals) <= level else None


@dataclass(frozen=True)
class Run:
    """One training of one racer with one seed: accuracy on validation, and what it cost alone."""

    accuracy: float
    cost: float


class Race:
    """Seed after seed for all racers; one that is beaten runs no further seed.

    Before each seed from the third on, every racer is compared with the others that are still in, on all seeds so far.
    With n seeds there are n - 2 such looks, and they share the level, so that the confidence holds for a racer over the
    whole race. A look waits for all runs of the seeds before it and reads no other ones: it depends neither on the
    order in which runs end nor on what was run ahead of it, so that a race that is taken up again from its recorded
    runs decides as the first one did.

    Attributes:
        beaten_by: who was dropped, and by whom.
        settled: of how many seeds it is known who runs them.
    """

    def __init__(
        self,
        can_be_dropped: Mapping[str, bool],
        seeds: Sequence[int],
        confidence: float = CONFIDENCE,
        resolution: float = 0.0,
    ) -> None:
        self.can_be_dropped, self.seeds = dict(can_be_dropped), tuple(seeds)
        self.level = (1 - confidence) / max(len(seeds) - MIN_SEEDS, 1)
        self.resolution = resolution
        self.settled = min(MIN_SEEDS, len(seeds))
        self.beaten_by: dict[str, str] = {}
        self.runs: dict[tuple[str, int], Run] = {}
        self.taken: set[tuple[str, int]] = set()

    @property
    def racing(self) -> list[str]:
        """Those that nobody has beaten yet."""
        return [racer for racer in self.can_be_dropped if racer not in self.beaten_by]

    def take(self) -> tuple[str, int] | None:
        """The next racer and seed to run; None, from then on, where nothing is left that may be wanted.

        Seed by seed, what is certainly wanted first. Only a lane that would idle otherwise gets a run that may turn out
        not to be wanted.
        """
        left = [
            (self.can_be_dropped[racer] and number >= self.settled, number, racer)
            for number, seed in enumerate(self.seeds)
            for racer in self.racing
            if (racer, seed) not in self.taken
        ]
        if not left:
            return None
        _, number, racer = min(left, key=lambda run: run[:2])
        self.taken.add((racer, self.seeds[number]))
        return racer, self.seeds[number]

    def record(self, racer: str, seed: int, run: Run) -> None:
        """A run has ended, in this session or in an earlier one."""
        self.taken.add((racer, seed))
        self.runs[racer, seed] = run
        while self.settled < len(self.seeds) and self._is_complete():
            racing = self.racing
            seen = {racer: [self.runs[racer, seed] for seed in self.seeds[: self.settled]] for racer in racing}
            accuracies = {racer: [run.accuracy for run in runs] for racer, runs in seen.items()}
            costs = {racer: fmean(run.cost for run in runs) for racer, runs in seen.items()}
            for racer in filter(self.can_be_dropped.__getitem__, racing):
                rival = beaten_by(racer, accuracies, costs, self.level, self.resolution)
                if rival is not None:
                    self.beaten_by[racer] = rival
            self.settled += 1

    def _is_complete(self) -> bool:
        return all((racer, seed) in self.runs for racer in self.racing for seed in self.seeds[: self.settled])


def front_probability(
    accuracies: Sequence[Sequence[float]], costs: Sequence[float], *, seed: int, draws: int = 2000
) -> list[float]:
    """How probably each row is on the true front of accuracy (more is better) and cost (less is better): a bootstrap.

    Each draw resamples every row's seeds with replacement and asks which of the means are on the front; costs stay as
    they are. Rows that retraining ranks alike share the probability, where a table of means shows one winner.

    What it knows is the luck of seeds, and few seeds know little of that: the spread of resampled means is
    sqrt((n - 1) / n) of the standard error, 0.82 of it for 3 seeds and 0.71 for 2, and 3 seeds have no more than 10
    different resamples. So probabilities of 3 seeds lie too near to 0 and 1; read 0.95 as "probably". Neither does it
    know the luck of the images: all rows were measured on the same ones.

    Args:
        accuracies: of each row by seed, best those on the test split, which has chosen nothing.
        costs: of each row.

    Returns:
        A probability a row; NaN for all where a row has fewer than two seeds, whose spread nobody knows: the others'
        chances depend on it.
    """
    if not accuracies or any(len(row) < MIN_SEEDS for row in accuracies):
        return [math.nan] * len(accuracies)
    generator = np.random.default_rng(seed)
    resampled = [generator.choice(np.asarray(row), size=(draws, len(row))).mean(axis=1) for row in accuracies]
    means = np.round(np.stack(resampled, axis=1), 12)  # one sum in two orders is one accuracy
    masks = [pareto.front(np.column_stack([drawn, costs]), (True, False)) for drawn in means]
    return [float(share) for share in np.mean(masks, axis=0)]


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A row's accuracy: on validation in the search, on validation retrained (mean over seeds), on test (mean)."""

    searched: float
    retrained: float
    tested: float


@dataclass(frozen=True)
class WinnersCurse:
    """How much better the front looked than it is; NaN without rows.

    Attributes:
        searched: validation accuracy as the search saw it, minus test: all of the optimism. The best of many noisy
            measurements were picked: a lucky training seed, lucky validation images, and the two splits' difference.
        retrained: validation accuracy over new seeds, minus test. The luck of the seed is gone; what is left is the
            fit of the choice to the validation images, and that one split may simply be harder than the other.
    """

    searched: float
    retrained: float


def winners_curse(rows: Sequence[Reached]) -> WinnersCurse:
    """Validation minus test, each a mean over the rows of the front, every row counting once."""
    if not rows:
        return WinnersCurse(math.nan, math.nan)
    return WinnersCurse(fmean(r.searched - r.tested for r in rows), fmean(r.retrained - r.tested for r in rows))
