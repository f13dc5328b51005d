"""lskd against scipy's z-score and relative entropy in float64, and what the standardisation makes it blind to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy, zscore

from sweeper.losses import lskd


def oracle(student, teacher, temperature):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = (softmax(zscore(row, ddof=1) / temperature) for row in (t, s))
        total += temperature**2 * entropy(p, q)
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("batch", [1, 6])
def test_value_and_gradient(batch, temperature, central_differences):
    student, teacher = np.random.default_rng(1).standard_normal((2, batch, 5)) * 4 + 1
    tensor = torch.tensor(student, requires_grad=True)
    value = lskd.lskd(tensor, torch.tensor(teacher), temperature)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, temperature), rel=1e-6)
    slope = central_differences(lambda point: oracle(point, teacher, temperature), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-4, atol=1e-7)


def test_pinned():
    rows = torch.tensor([[1.0, 2.0, 3.0], [50.0, 40.0, 30.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(lskd.standardized(rows), expected, rtol=1e-6, atol=1e-6)
    weights = [math.exp(z / 2) for z in (-1, 0, 1)]  # KL(p || reversed p) = sum p_i (i - (-i)) / 2, T^2 = 4
    mean = (weights[2] - weights[0]) / sum(weights)
    assert lskd.lskd(rows[:1], rows[1:], 2.0).item() == pytest.approx(4 * mean, rel=1e-6)


def test_only_relations_within_a_row_count(inputs, context):
    loss, given = lskd.build(lskd.Config(), context()), inputs()
    scale, shift = torch.linspace(0.1, 9, 8)[:, None], torch.linspace(-20, 20, 8)[:, None]
    same = inputs(student_logits_BK=given.teacher_logits_BK * scale + shift)
    assert loss(same).item() == pytest.approx(0, abs=1e-5)
    moved = inputs(student_logits_BK=given.student_logits_BK.detach() * scale + shift)
    assert loss(moved).item() == pytest.approx(loss(given).item(), rel=1e-4)
    student, teacher = (t.detach().double().numpy() for t in (given.student_logits_BK, given.teacher_logits_BK))
    assert loss(given).item() == pytest.approx(oracle(student, teacher, 2.0), rel=1e-5)


def test_equal_logits_have_no_slope():
    student = torch.full((2, 5), 0.1, requires_grad=True)
    value = lskd.lskd(student, torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).repeat(2, 1), 2.0)
    value.backward()
    assert value > 0
    assert torch.equal(student.grad, torch.zeros(2, 5))
