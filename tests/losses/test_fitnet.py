"""fitnet against loops in float64, and which pair gives the hint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_oracles import convolved, draw, maps_of, same_size, state_of

from sweeper.losses import fitnet


def oracle(student, teacher):
    return sum((s - t) ** 2 for s, t in zip(student.flat, teacher.flat, strict=True)) / student.size


def test_hint(central_differences):
    student, teacher = draw(1, 2, 2, 3, 2, 4)
    tensor = torch.tensor(student, requires_grad=True)
    value = fitnet.hint(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    maps = torch.randn(2, 3, 4, 4)
    assert fitnet.hint(maps, maps).item() == 0
    assert fitnet.hint(maps, maps + 3).item() == pytest.approx(9)


@pytest.mark.parametrize(
    ("depth", "num_pairs", "number"),
    [(0.5, 1, 0), (0.5, 2, 1), (0.5, 3, 1), (0.5, 4, 2), (0.5, 5, 2), (0, 4, 0), (0.3, 4, 1), (1, 4, 3), (1, 1, 0)],
)
def test_pair_at(depth, num_pairs, number):
    assert fitnet.pair_at(depth, num_pairs) == number


@pytest.mark.parametrize(("depth", "number"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_module_regresses_one_pair(depth, number, inputs, context):
    loss = fitnet.build(fitnet.Config(depth=depth), context())
    given, state = inputs(), state_of(loss)
    student, teacher = same_size(*maps_of(given)[number])
    expected = oracle(convolved(student, state["connector.0.weight"], state["connector.0.bias"]), teacher)
    value = loss(given)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert [m.grad is not None for m in given.student_maps] == [i == number for i in range(3)]
