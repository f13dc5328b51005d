"""Which points nothing else beats, and how much of the plane they cover.

A point dominates another if it is at least as good in every objective and better in one. The algorithms are moocore's
(Kung et al. 1975; Jensen 2003; Fonseca et al. 2006); this module settles what tables of trials bring along: ties stay,
a NaN is never on the front, a single objective works as several do. Whether cost enters in logs is the caller's choice:
`front` and `ranks` do not change with it, `hypervolume` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Maximise = bool | Sequence[bool]
# Where cost is bounded at all it is at so many times the dearest point's: at its own, the most accurate point, which
# is often the dearest, would cover nothing.
REACH = 2.0


def front(points: ArrayLike, maximise: Maximise) -> NDArray[np.bool_]:
    """Which points no other one dominates.

    Args:
        points: [N, M] values of M >= 1 objectives. Equal points are on the front together or not at all; a point with a
            NaN is not on it and keeps none off it. Infinities compare as numbers do.
        maximise: for all objectives, or one of M: True where more is better.

    Returns:
        bool [N].

    Raises:
        ValueError: not of shape [N, M], or `maximise` does not fit.
    """
    costs, valid = _costs(points, maximise)
    mask = np.zeros(len(costs), dtype=bool)
    if valid.any():
        mask[valid] = moocore.is_nondominated(costs[valid], keep_weakly=True)
    return mask


def ranks(points: ArrayLike, maximise: Maximise) -> NDArray[np.int64]:
    """Nondominated sorting: 0 for the front, 1 for the front of the rest, and so on; equal points rank equally.

    Points with a NaN all come one rank after the last. Arguments and errors as of `front`; returns int64 [N].
    """
    costs, valid = _costs(points, maximise)
    result = np.zeros(len(costs), dtype=np.int64)
    if valid.any():
        result[valid] = moocore.pareto_rank(costs[valid])
        result[~valid] = result[valid].max() + 1
    return result


def hypervolume(points: ArrayLike, reference: ArrayLike, maximise: Maximise) -> float:
    """Volume of what the points dominate and the reference point bounds; 0 without any point that beats it everywhere.

    Args:
        points: [N, M] as for `front`; a point with a NaN, or no better than the reference somewhere, adds nothing.
        reference: [M], finite: the worst value that still counts of each objective.
        maximise: as for `front`.

    Raises:
        ValueError: as `front`, or a reference of another length or not finite.
    """
    costs, valid = _costs(points, maximise)
    bound = np.asarray(reference, dtype=float)
    if bound.shape != costs.shape[1:] or not np.isfinite(bound).all():
        raise ValueError(f"reference: {reference!r}; must be {costs.shape[1]} finite values, one an objective")
    bound = bound * _signs(maximise, costs.shape[1])
    inside = valid & (costs < bound).all(axis=1)
    return float(moocore.hypervolume(costs[inside], ref=bound)) if inside.any() else 0.0


def _costs(points: ArrayLike, maximise: Maximise) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The points with every objective turned so that less is better, and which of them have no NaN."""
    values = np.asarray(points, dtype=float)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"points: shape {values.shape}; must be [points, objectives] with at least one objective")
    return values * _signs(maximise, values.shape[1]), ~np.isnan(values).any(axis=1)


def _signs(maximise: Maximise, num_objectives: int) -> NDArray[np.float64]:
    flags = np.asarray(maximise, dtype=bool)
    if flags.shape not in ((), (num_objectives,)):
        raise ValueError(f"maximise: {maximise!r}; must be one bool, or one for each of {num_objectives} objectives")
    return np.broadcast_to(np.where(flags, -1.0, 1.0), (num_objectives,))
