"""soft_nn against the paper's ratio of sums in loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sweeper.losses import soft_nn

LABELS = np.array([0, 1, 0, 2, 2, 4, 1])
HARD = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)


def oracle(student, teacher, labels, hard, temperature):
    rows = np.flatnonzero(hard)
    total = 0.0
    for i in rows:
        near = {j: math.exp(-sum((student[i] - teacher[j]) ** 2) / temperature) for j in rows}
        total -= math.log(sum(near[j] for j in rows if labels[j] == labels[i]) / sum(near.values()))
    return total / len(rows)


def loss_of(student, teacher, labels=LABELS, hard=HARD, temperature=1.0):
    return soft_nn.soft_nn(
        torch.as_tensor(student), torch.as_tensor(teacher), torch.as_tensor(labels), torch.as_tensor(hard), temperature
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 50.0])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_value_and_gradient(side, temperature, central_differences):
    points = dict(zip(("student", "teacher"), np.random.default_rng(1).standard_normal((2, 7, 5)), strict=True))
    tensors = {name: torch.tensor(point, requires_grad=True) for name, point in points.items()}
    value = loss_of(**tensors, temperature=temperature)
    value.backward()
    assert value.item() == pytest.approx(oracle(**points, labels=LABELS, hard=HARD, temperature=temperature), rel=1e-9)
    slope = central_differences(
        lambda point: oracle(**{**points, side: point}, labels=LABELS, hard=HARD, temperature=temperature),
        points[side],
    )
    np.testing.assert_allclose(tensors[side].grad, slope, rtol=1e-4, atol=1e-7)
    assert (tensors[side].grad[~HARD] == 0).all()


def test_pinned_values():
    axes = torch.eye(2, dtype=torch.float64)
    both = np.ones(2, dtype=bool)
    assert loss_of(axes, axes, np.arange(2), both).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert loss_of(axes, axes.flip(0), np.arange(2), both, 0.5).item() == pytest.approx(math.log(1 + math.exp(4)))
    flat = torch.zeros(4, 2)
    chance = loss_of(flat, flat, np.array([0, 0, 0, 1]), np.ones(4, dtype=bool))
    assert chance.item() == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    far = torch.tensor([[0.0, 0.0], [1e3, 0.0]])  # every exponential underflows
    assert loss_of(far, far.flip(0), np.arange(2), both).item() == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("labels", "hard"), [([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [0, 1, 0]), ([3, 3, 1], [1, 1, 0]), ([3, 3, 3], [1, 1, 1])]
)
def test_without_two_classes_it_is_exactly_0(labels, hard):
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    value = loss_of(student, teacher, np.array(labels), np.array(hard, dtype=bool))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros(3, 4))


def test_module_compares_unit_vectors(inputs, context):
    loss = soft_nn.build(soft_nn.Config(projector="linear", dim=4, temperature=0.4), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    student, teacher = (
        rows.detach().double().numpy() @ state[f"{side}_projector.0.weight"].T + state[f"{side}_projector.0.bias"]
        for side, rows in {"student": given.student_embedding_BD, "teacher": given.teacher_embedding_BT}.items()
    )
    student, teacher = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (student, teacher))
    expected = oracle(student, teacher, given.labels_B.numpy(), given.hard_B.numpy(), 0.4)
    assert expected > 0
    assert loss(given).item() == pytest.approx(expected, rel=1e-4)
