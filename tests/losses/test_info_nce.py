"""info_nce against scipy's logsumexp in float64, and its closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from sweeper.losses import info_nce


def oracle(student, teacher, tau, symmetric):
    student, teacher = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (student, teacher))
    scores = np.array([[float(s @ t) / tau for t in teacher] for s in student])
    forward = np.mean(logsumexp(scores, axis=1) - np.diag(scores))
    backward = np.mean(logsumexp(scores, axis=0) - np.diag(scores))
    return (forward + backward) / 2 if symmetric else forward


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_value_and_gradient(tau, symmetric, central_differences):
    student, teacher = np.random.default_rng(4).standard_normal((2, 6, 5))
    tensor = torch.tensor(student, requires_grad=True)
    normalize = torch.nn.functional.normalize
    value = info_nce.info_nce(normalize(tensor), normalize(torch.tensor(teacher)), tau, symmetric)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, tau, symmetric), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, tau, symmetric), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-7)


def test_pinned_values():
    axes = torch.eye(4)
    chance = info_nce.info_nce(torch.ones(4, 1), torch.ones(4, 1), 0.1)
    assert chance.item() == pytest.approx(math.log(4), rel=1e-6)
    own = info_nce.info_nce(axes, axes, 1.0)
    assert own.item() == pytest.approx(math.log(1 + 3 / math.e), rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_module_projects_both_sides(symmetric, inputs, context):
    loss = info_nce.build(info_nce.Config(projector="linear", dim=4, tau=0.2, symmetric=symmetric), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    sides = {"student": given.student_embedding_BD, "teacher": given.teacher_embedding_BT}
    projected = [
        rows.detach().double().numpy() @ state[f"{side}_projector.0.weight"].T + state[f"{side}_projector.0.bias"]
        for side, rows in sides.items()
    ]
    assert loss(given).item() == pytest.approx(oracle(*projected, 0.2, symmetric), rel=1e-5)
