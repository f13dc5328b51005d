"""ofd against the cases of its definition in float64, its margins, and the weights of the levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_oracles import connected, draw, maps_of, same_size, state_of

from sweeper.losses import ofd


def oracle_margins(teacher):
    found = []
    for c in range(teacher.shape[1]):
        below = [value for value in teacher[:, c].flat if value < 0]
        found.append(sum(below) / len(below) if below else 0.0)
    return np.array(found)


def oracle(student, teacher, margins):
    total = 0.0
    for index in np.ndindex(student.shape):
        target = max(teacher[index], margins[index[1]])
        if not student[index] <= target <= 0:
            total += (student[index] - target) ** 2
    return total / len(student)


def four(margins):
    return torch.tensor(margins).reshape(1, -1, 1, 1)


def test_margins():
    teacher = draw(1, 3, 4, 2, 2)
    teacher[:, 2] = np.maximum(teacher[:, 2], 0)
    found = ofd.margins(torch.tensor(teacher))
    np.testing.assert_allclose(found.flatten(), oracle_margins(teacher), rtol=1e-12)
    assert found[0, 2] == 0


def test_value_and_gradient(central_differences):
    student, teacher = draw(2, 2, 3, 4, 2, 2)
    margins = np.array([0.0, -0.3, -0.8, -5.0])
    tensor = torch.tensor(student, requires_grad=True)
    value = ofd.partial_distance(tensor, torch.tensor(teacher), four(margins))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, margins), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, margins), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("student", "teacher", "margin", "expected"),
    [
        (1.0, 3.0, -1.0, 4.0),  # on: regressed
        (-2.0, 3.0, -1.0, 25.0),
        (0.5, -0.4, -1.0, 0.81),  # above a target between margin and 0
        (-0.7, -0.4, -1.0, 0.0),  # below it
        (0.5, -9.0, -1.0, 2.25),  # down to the margin and no further
        (-1.5, -9.0, -1.0, 0.0),
        (0.5, 0.0, 0.0, 0.25),  # behind a ReLU
        (-0.5, 0.0, 0.0, 0.0),
    ],
)
def test_pinned(student, teacher, margin, expected):
    values = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (student, teacher, margin))
    assert ofd.partial_distance(*values).item() == pytest.approx(expected)


def test_module_weighs_the_levels(inputs, context):
    loss = ofd.build(ofd.Config(), context())
    given, state = inputs(), state_of(loss)
    expected = 0.0
    for i, (student, teacher) in enumerate(maps_of(given)):
        margins = oracle_margins(teacher)
        assert (margins < 0).all()
        small_student, small_teacher = same_size(student, teacher)
        distance = oracle(connected(state, f"connectors.{i}", small_student), small_teacher, margins)
        expected += [0.25, 0.5, 1][i] * distance
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
