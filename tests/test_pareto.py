"""The front, the ranks and the hypervolume against their definitions, on points with ties, duplicates and NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from sweeper.pareto import front, hypervolume, ranks

Points = NDArray[np.float64]


def dominates(one: Points, other: Points, maximise: list[bool]) -> bool:
    if np.isnan(one).any():
        return False
    better = [a > b if up else a < b for a, b, up in zip(one, other, maximise, strict=True)]
    equal = [a == b for a, b in zip(one, other, strict=True)]
    return any(better) and all(b or e for b, e in zip(better, equal, strict=True))


def front_by_definition(points: Points, maximise: list[bool]) -> list[bool]:
    return [
        not np.isnan(point).any() and not any(dominates(other, point, maximise) for other in points) for point in points
    ]


def ranks_by_definition(points: Points, maximise: list[bool]) -> list[int]:
    result = np.full(len(points), -1)
    for rank in itertools.count():
        left = np.flatnonzero((result < 0) & ~np.isnan(points).any(axis=1))
        if not len(left):
            return [int(value) if value >= 0 else rank for value in result]
        result[left[front_by_definition(points[left], maximise)]] = rank
    raise AssertionError


def volume_by_counting(points: Points, reference: Points, maximise: list[bool]) -> float:
    """Integer points: the volume is the number of unit cells that some point dominates."""
    signs = np.where(maximise, -1, 1)
    costs, bound = (points * signs)[~np.isnan(points).any(axis=1)], reference * signs
    low = costs.min(axis=0, initial=0) if len(costs) else bound
    axes = [np.arange(a, b) for a, b in zip(np.minimum(low, bound), bound, strict=True)]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(bound))
    return float((costs[None] <= cells[:, None]).all(axis=2).any(axis=1).sum())


def some_points(seed: int, num_objectives: int, with_nan: bool = True) -> tuple[Points, list[bool]]:
    """Few distinct values, so that ties and duplicates abound."""
    draw = np.random.default_rng(seed)
    num_points = int(draw.integers(1, 40))
    points = draw.integers(-4, 5, size=(num_points, num_objectives)).astype(float)
    if with_nan:
        points[draw.random(points.shape) < 0.1] = np.nan
    return points, [bool(value) for value in draw.integers(0, 2, size=num_objectives)]


CASES = [(seed, objectives) for objectives in (1, 2, 3, 4) for seed in range(25)]


@pytest.mark.parametrize(("seed", "num_objectives"), CASES)
def test_front_and_ranks_as_defined(seed: int, num_objectives: int) -> None:
    points, maximise = some_points(seed, num_objectives)
    assert front(points, maximise).tolist() == front_by_definition(points, maximise)
    assert ranks(points, maximise).tolist() == ranks_by_definition(points, maximise)


@pytest.mark.parametrize(("seed", "num_objectives"), CASES)
def test_hypervolume_as_counted(seed: int, num_objectives: int) -> None:
    points, maximise = some_points(seed, num_objectives)
    reference = np.random.default_rng(seed + 1000).integers(-3, 4, size=num_objectives).astype(float)
    expected = volume_by_counting(points, reference, maximise)
    assert hypervolume(points, reference, maximise) == pytest.approx(expected)


def test_accuracy_against_hours() -> None:
    rows = [[0.9, 1.0], [0.9, 2.0], [0.8, 0.5], [0.8, 0.5], [np.nan, 0.1], [0.7, 0.6]]
    assert front(rows, [True, False]).tolist() == [True, False, True, True, False, False]
    assert ranks(rows, [True, False]).tolist() == [0, 1, 0, 0, 2, 1]
    assert hypervolume(rows, [0.5, 2.0], [True, False]) == pytest.approx(0.4 * 1.0 + 0.3 * 0.5)


def test_infinities_compare_as_numbers() -> None:
    rows = [[0.9, np.inf], [0.9, 2.0], [-np.inf, 1.0], [0.5, 1.0]]
    assert front(rows, [True, False]).tolist() == front_by_definition(np.array(rows), [True, False])
    assert hypervolume(rows, [0.0, 3.0], [True, False]) == pytest.approx(0.9 * 1 + 0.5 * 1)
    assert hypervolume([[np.inf, 1.0]], [0.0, 3.0], [True, False]) == np.inf


def test_nothing_and_nothing_but_nan() -> None:
    empty, lost = np.empty((0, 2)), np.full((3, 2), np.nan)
    assert front(empty, True).shape == ranks(empty, True).shape == (0,)
    assert not front(lost, True).any()
    assert ranks(lost, True).tolist() == [0, 0, 0]
    assert hypervolume(empty, [0, 0], True) == hypervolume(lost, [0, 0], True) == 0.0


def test_arguments_stay_as_they_are() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0]])
    before = points.copy()
    front(points, [True, False])
    ranks(points, [True, False])
    hypervolume(points, [0, 3], [True, False])
    assert np.array_equal(points, before)


def test_wrong_shapes_are_refused() -> None:
    for call in (front, ranks):
        with pytest.raises(ValueError, match="points"):
            call([1.0, 2.0], True)
        with pytest.raises(ValueError, match="maximise"):
            call([[1.0, 2.0]], [True])
    with pytest.raises(ValueError, match="reference"):
        hypervolume([[1.0, 2.0]], [0.0], True)
    with pytest.raises(ValueError, match="reference"):
        hypervolume([[1.0, 2.0]], [0.0, np.nan], True)
