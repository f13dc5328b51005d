"""hint against scikit-learn's mean squared error in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error

from sweeper.losses import hint


def test_value_and_gradient(central_differences):
    student, teacher = np.random.default_rng(5).standard_normal((2, 6, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = hint.hint(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(mean_squared_error(teacher, student), rel=1e-9)
    slope = central_differences(lambda point: mean_squared_error(teacher, point), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    assert hint.hint(torch.zeros(2, 2), torch.tensor([[1.0, -2.0], [0.0, 3.0]])).item() == 3.5


@pytest.mark.parametrize("kind", ["linear", "mocov2"])
def test_module_projects_to_the_teachers_width(kind, inputs, context):
    loss = hint.build(hint.Config(projector=kind), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    student = given.student_embedding_BD.detach().double().numpy()
    for layer in ["0"] if kind == "linear" else ["0", "2"]:
        weight, bias = (state[f"student_projector.{layer}.{name}"] for name in ("weight", "bias"))
        student = np.maximum(student, 0 if layer == "2" else -np.inf) @ weight.T + bias
    teacher = given.teacher_embedding_BT.double().numpy()
    assert loss(given).item() == pytest.approx(mean_squared_error(teacher, student), rel=1e-5)
