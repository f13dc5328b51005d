"""cosine against scipy's distance in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine as scipy_cosine

from sweeper.losses import cosine


def oracle(student, teacher):
    return np.mean([scipy_cosine(s, t) for s, t in zip(student, teacher, strict=True)])


def test_value_and_gradient(central_differences):
    student, teacher = np.random.default_rng(5).standard_normal((2, 6, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = cosine.cosine(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_bounds():
    rows = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    assert cosine.cosine(rows, 5 * rows).item() == pytest.approx(0, abs=1e-6)
    assert cosine.cosine(rows, -rows).item() == pytest.approx(2)


def test_module_projects_to_the_teachers_width(inputs, context):
    loss = cosine.build(cosine.Config(), context())
    given = inputs()
    weight, bias = (loss.state_dict()[f"student_projector.0.{name}"].double().numpy() for name in ("weight", "bias"))
    student = given.student_embedding_BD.detach().double().numpy() @ weight.T + bias
    assert loss(given).item() == pytest.approx(oracle(student, given.teacher_embedding_BT.double().numpy()), rel=1e-5)
