"""kl against scipy's relative entropy and its closed-form gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from sweeper.losses import kl


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient(temperature):
    rng = np.random.default_rng(0)
    student_BK, teacher_BK = 5 * rng.standard_normal((2, 7, 4))
    p_student, p_teacher = softmax(student_BK / temperature, axis=1), softmax(teacher_BK / temperature, axis=1)
    logits = torch.tensor(student_BK, requires_grad=True)
    value = kl.kl(logits, torch.tensor(teacher_BK), temperature)
    value.backward()
    assert value.item() == pytest.approx(temperature**2 * rel_entr(p_teacher, p_student).sum() / 7, rel=1e-9)
    np.testing.assert_allclose(logits.grad, temperature * (p_student - p_teacher) / 7, rtol=1e-9, atol=1e-12)


def test_module_in_float32(inputs, context):
    given = inputs()
    value = kl.build(kl.Config(temperature=2.0), context())(given)
    p_student = softmax(given.student_logits_BK.detach().double().numpy() / 2, axis=1)
    p_teacher = softmax(given.teacher_logits_BK.double().numpy() / 2, axis=1)
    assert value.item() == pytest.approx(4 * rel_entr(p_teacher, p_student).sum() / 8, rel=1e-5)


def test_zero_for_equal_logits_and_pinned_value():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    assert kl.kl(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    # p_T = (3/4, 1/4), p_S = (1/2, 1/2)
    pinned = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl.kl(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), 1.0).item() == pytest.approx(pinned, rel=1e-6)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-6e4, 6e4]], requires_grad=True)
    value = kl.kl(logits, -logits.detach(), 1.0)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_absent_logits_are_named(inputs, context):
    with pytest.raises(ValueError, match="teacher's logits"):
        kl.build(kl.Config(), context())(inputs(teacher_logits_BK=None))
