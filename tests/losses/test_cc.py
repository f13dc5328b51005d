"""cc against loops over neighbours in float64; the order of the batch counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.losses import cc


def oracle(student, teacher):
    total = 0.0
    for i in range(len(student) - 1):
        for p in range(student.shape[1]):
            total += abs(student[i, p] - teacher[i, p]) * abs(student[i + 1, p] - teacher[i + 1, p])
    return total / (len(student) - 1)


@pytest.mark.parametrize("batch", [2, 6])
def test_value_and_gradient(batch, central_differences):
    student, teacher = np.random.default_rng(8).standard_normal((2, batch, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = cc.neighbour_congruence(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned_and_order_counts():
    student = torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.0, 5.0]])
    assert cc.neighbour_congruence(student, torch.zeros(3, 2)).item() == 1.5  # (1 3 + 2 0 + 3 0 + 0 5) / 2
    assert cc.neighbour_congruence(student[[0, 2, 1]], torch.zeros(3, 2)).item() == 5  # (1 0 + 2 5 + 0 3 + 5 0) / 2
    assert not cc.IN_ANY_ORDER


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        cc.neighbour_congruence(torch.ones(1, 3), torch.ones(1, 3))


def test_module_projects_both_sides(inputs, context):
    loss = cc.build(cc.Config(dim=4), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}

    def project(side, rows):
        weight, bias = (state[f"{side}_projector.0.{name}"] for name in ("weight", "bias"))
        return rows.detach().double().numpy() @ weight.T + bias

    student, teacher = project("student", given.student_embedding_BD), project("teacher", given.teacher_embedding_BT)
    assert student.shape == teacher.shape == (8, 4)
    assert loss(given).item() == pytest.approx(oracle(student, teacher), rel=1e-5)
