from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest

from sweeper import pareto
from sweeper.progress import Point, hypervolume_curve


def made_up(count: int, seed: int) -> list[Point]:
    """Costs and accuracies on a coarse grid, so that ties of either and of both occur."""
    draw = random.Random(seed)
    return [(float(i // 2), round(draw.random(), 1), round(10 ** draw.uniform(-2, 1), 2)) for i in range(count)]


def oracle(points: list[Point], everything: list[Point], reference: float) -> float:
    """moocore's hypervolume of the points in the unit square."""
    logs = [math.log(hours) for _, _, hours in everything]
    low, high = min(logs), max(logs) + math.log(pareto.REACH)
    square = [((a - reference) / (1 - reference), (math.log(h) - low) / (high - low)) for _, a, h in points]
    return pareto.hypervolume(square, (0.0, 1.0), (True, False))


@pytest.mark.parametrize("seed", range(20))
def test_every_record_is_moocores_hypervolume(seed: int) -> None:
    points = made_up(60, seed)
    curve = hypervolume_curve(points, reference_accuracy=0.25, shared_seconds=100.0)
    for record in curve[1:]:
        seen = [point for point in points if 100.0 + point[0] <= record["seconds"]]
        assert record["hypervolume"] == pytest.approx(oracle(seen, points, 0.25), abs=1e-12)
    missed = {100.0 + p[0] for p in points} - {r["seconds"] for r in curve}
    for moment in missed:
        before = max((r for r in curve if r["seconds"] < moment), key=lambda r: r["seconds"])
        now = [p for p in points if 100.0 + p[0] <= moment]
        assert oracle(now, points, 0.25) == pytest.approx(before["hypervolume"], abs=1e-12), "a change has a record"


def test_a_curve_by_hand() -> None:
    """Twice the dearest cost is 64 times the cheapest: one octave is a sixth of the width."""
    points = [(5.0, 0.6, 4.0), (7.0, 0.2, 1.0), (9.0, 0.8, 1.0), (12.0, 0.9, 32.0), (20.0, 0.1, 2.0)]
    found = hypervolume_curve(points, reference_accuracy=0.2, shared_seconds=3.0)
    assert [r["seconds"] for r in found] == [3.0, 8.0, 12.0, 15.0, 23.0]
    last = 0.75 + 0.125 / 6
    assert [r["hypervolume"] for r in found] == pytest.approx([0.0, 0.5 * 4 / 6, 0.75, last, last])


def test_it_rises_and_order_does_not_matter() -> None:
    points = made_up(200, 7)
    curve = hypervolume_curve(points, reference_accuracy=0.1, shared_seconds=0.0)
    for name in ("seconds", "hypervolume"):
        values = [record[name] for record in curve]
        assert values == sorted(values)
    assert len({record["seconds"] for record in curve}) == len(curve) < len(points) / 2
    again = hypervolume_curve(sorted(points, reverse=True), reference_accuracy=0.1, shared_seconds=0.0)
    assert again[-1]["hypervolume"] == pytest.approx(curve[-1]["hypervolume"])
    assert [r["seconds"] for r in again] == [r["seconds"] for r in curve]


def test_the_unit_is_filled_by_a_perfect_cheapest_point() -> None:
    curve = hypervolume_curve([(1.0, 1.0, 0.5), (2.0, 0.9, 5.0)], reference_accuracy=0.5, shared_seconds=0.0)
    assert curve[-1]["hypervolume"] == 1.0


def test_equal_costs_leave_accuracy() -> None:
    curve = hypervolume_curve([(1.0, 0.6, 2.0), (2.0, 0.7, 2.0)], reference_accuracy=0.5, shared_seconds=0.0)
    assert [record["hypervolume"] for record in curve] == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize("accuracy", [math.nan, math.inf, 0.1])
def test_what_is_no_candidate_only_takes_time(accuracy: float) -> None:
    points = [(1.0, 0.8, 1.0), (2.0, 0.5, 10.0), (4.0, accuracy, 1.0)]
    for more in ((6.0, 0.9, math.nan), (6.0, 0.9, 0.0), (6.0, 0.9, math.inf)):
        curve = hypervolume_curve([*points, more], reference_accuracy=0.2, shared_seconds=0.0)
        assert curve[-1] == {"seconds": 6.0, "hypervolume": pytest.approx(0.75)}
        assert len(curve) == 3


def test_nothing_gives_nothing_and_a_wrong_reference_is_refused() -> None:
    assert hypervolume_curve([], reference_accuracy=0.1, shared_seconds=5.0) == []
    for wrong in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="reference_accuracy"):
            hypervolume_curve([(1.0, 0.5, 1.0)], reference_accuracy=wrong, shared_seconds=0.0)


def test_many_points_take_no_square_of_their_number() -> None:
    """A quadratic way takes minutes for these; the bound is far from what a busy machine needs."""
    rng = np.random.default_rng(0)
    rows = zip(np.arange(100_000.0), rng.random(100_000), np.exp(rng.normal(size=100_000)), strict=True)
    begun = time.process_time()
    curve = hypervolume_curve([tuple(map(float, r)) for r in rows], reference_accuracy=0.1, shared_seconds=0.0)  # type: ignore[misc]
    assert time.process_time() - begun < 10
    assert 0.9 < curve[-1]["hypervolume"] <= 1.0
