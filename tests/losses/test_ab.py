"""ab against the four cases of its definition in float64, and the weights of the levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_oracles import connected, draw, maps_of, pooled, state_of

from sweeper.losses import ab


def oracle(student, teacher, margin):
    total = 0.0
    for s, t in zip(student.flat, teacher.flat, strict=True):
        if t > 0 and s <= margin:
            total += (s - margin) ** 2
        if t <= 0 and s > -margin:
            total += (s + margin) ** 2
    return total / len(student)


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_value_and_gradient(margin, central_differences):
    student, teacher = draw(1, 2, 3, 3, 2, 2)
    teacher = np.maximum(teacher, 0)  # as behind a ReLU: off is exactly 0
    tensor = torch.tensor(student, requires_grad=True)
    value = ab.boundary_distance(tensor, torch.tensor(teacher), margin)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, margin), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, margin), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    teacher = torch.tensor([5.0, 5.0, 5.0, -2.0, 0.0, 0.0]).reshape(1, 6, 1, 1)
    student = torch.tensor([1.5, 0.5, -1.0, -1.5, -0.5, 1.0]).reshape(1, 6, 1, 1)
    assert ab.boundary_distance(student, teacher, 1.0).item() == pytest.approx(0 + 0.25 + 4 + 0 + 0.25 + 4)
    both = torch.cat([student, teacher])
    assert ab.boundary_distance(both, teacher.repeat(2, 1, 1, 1), 0.5).item() == pytest.approx((2.25 * 2 + 0.5) / 2)


def test_only_the_teachers_side_counts():
    student, teacher = torch.tensor(draw(2, 2, 2, 3, 2, 2))
    value = ab.boundary_distance(student, teacher, 1.0)
    torch.testing.assert_close(ab.boundary_distance(student, teacher.sign(), 1.0), value)


def test_module_weighs_the_levels(inputs, context):
    loss = ab.build(ab.Config(margin=0.7), context())
    given, state = inputs(), state_of(loss)
    expected = 0.0
    for i, (student, teacher) in enumerate(maps_of(given)):
        resized = pooled(student, teacher.shape[2:])
        expected += [0.25, 0.5, 1][i] * oracle(connected(state, f"connectors.{i}", resized), teacher, 0.7)
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
