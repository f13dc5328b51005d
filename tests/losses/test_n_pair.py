"""n_pair against Sohn's sum over classes and a soft-label cross-entropy, in loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from sweeper.losses import n_pair

LABELS = np.array([0, 1, 0, 2, 2, 4, 1])
HARD = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)


def oracle(student, teacher, labels, hard, l2):
    rows = np.flatnonzero(hard)
    if len({labels[i] for i in rows}) < 2:
        return 0.0
    total = 0.0
    for i in rows:
        scores = {j: float(student[i] @ teacher[j]) for j in rows}
        positives = [j for j in rows if labels[j] == labels[i]]
        total += sum(logsumexp(list(scores.values())) - scores[j] for j in positives) / len(positives)
        total += l2 / 4 * (sum(student[i] ** 2) + sum(teacher[i] ** 2))
    return total / len(rows)


def loss_of(student, teacher, labels=LABELS, hard=HARD, l2=0.0):
    return n_pair.n_pair(
        torch.as_tensor(student), torch.as_tensor(teacher), torch.as_tensor(labels), torch.as_tensor(hard), l2
    )


@pytest.mark.parametrize("l2", [0.0, 0.5])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_value_and_gradient(side, l2, central_differences):
    points = dict(zip(("student", "teacher"), np.random.default_rng(1).standard_normal((2, 7, 5)), strict=True))
    tensors = {name: torch.tensor(point, requires_grad=True) for name, point in points.items()}
    value = loss_of(**tensors, l2=l2)
    value.backward()
    assert value.item() == pytest.approx(oracle(**points, labels=LABELS, hard=HARD, l2=l2), rel=1e-9)
    slope = central_differences(
        lambda point: oracle(**{**points, side: point}, labels=LABELS, hard=HARD, l2=l2), points[side]
    )
    np.testing.assert_allclose(tensors[side].grad, slope, rtol=1e-5, atol=1e-8)
    assert (tensors[side].grad[~HARD] == 0).all()


def test_one_row_a_class_is_sohns_form():
    student, teacher = np.random.default_rng(2).standard_normal((2, 4, 3))
    expected = np.mean(
        [
            math.log(1 + sum(math.exp(student[i] @ (teacher[j] - teacher[i])) for j in range(4) if j != i))
            for i in range(4)
        ]
    )
    value = loss_of(student, teacher, np.arange(4), np.ones(4, dtype=bool))
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_pinned_values():
    axes = torch.eye(2, dtype=torch.float64)
    both = np.ones(2, dtype=bool)
    assert loss_of(axes, axes, np.arange(2), both).item() == pytest.approx(math.log(1 + 1 / math.e))
    assert loss_of(axes, axes, np.arange(2), both, l2=2.0).item() == pytest.approx(math.log(1 + 1 / math.e) + 1)
    flat = torch.zeros(3, 2)
    assert loss_of(flat, flat, np.array([0, 0, 1]), np.ones(3, dtype=bool)).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("labels", "hard"), [([0, 1, 2], [0, 0, 0]), ([0, 1, 2], [0, 1, 0]), ([3, 3, 1], [1, 1, 0]), ([3, 3, 3], [1, 1, 1])]
)
def test_without_two_classes_it_is_exactly_0(labels, hard):
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    value = loss_of(student, teacher, np.array(labels), np.array(hard, dtype=bool), l2=1.0)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros(3, 4))


def test_module_projects_without_normalising(inputs, context):
    loss = n_pair.build(n_pair.Config(projector="linear", dim=4, l2=0.3), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    student, teacher = (
        rows.detach().double().numpy() @ state[f"{side}_projector.0.weight"].T + state[f"{side}_projector.0.bias"]
        for side, rows in {"student": given.student_embedding_BD, "teacher": given.teacher_embedding_BT}.items()
    )
    expected = oracle(student, teacher, given.labels_B.numpy(), given.hard_B.numpy(), 0.3)
    assert expected > 0
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
