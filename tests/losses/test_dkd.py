"""dkd against relative entropies of the two partial distributions in float64, its sum to plain KD, and its warm-up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pydantic
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from sweeper.losses import dkd
from sweeper.losses.kl import kl


def oracle(student, teacher, labels, hard, temperature):
    terms = []
    for s, t, y in zip(student[hard], teacher[hard], labels[hard], strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        others = [k for k in range(len(p)) if k != y]
        target = entropy([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        terms.append((target, entropy(p[others], q[others])))  # scipy divides each by its sum
    return temperature**2 * np.mean(terms, axis=0)


def draw(batch=6, num_classes=5):
    rng = np.random.default_rng(3)
    student, teacher = rng.standard_normal((2, batch, num_classes)) * 3
    return student, teacher, rng.integers(num_classes, size=batch), np.arange(batch) % 3 != 1


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient(temperature, part, central_differences):
    student, teacher, labels, hard = draw()
    tensor = torch.tensor(student, requires_grad=True)
    others = torch.tensor(teacher), torch.tensor(labels), torch.tensor(hard)
    value = dkd.dkd(tensor, *others, temperature)[part]
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, labels, hard, temperature)[part], rel=1e-9)
    slope = central_differences(lambda z: oracle(z, teacher, labels, hard, temperature)[part], student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)
    assert (tensor.grad[~hard] == 0).all()


def test_parts_add_up_to_plain_kd():
    student, teacher, labels, _ = draw(batch=1)
    student, teacher, labels = torch.tensor(student), torch.tensor(teacher), torch.tensor(labels)
    tckd, nckd = dkd.dkd(student, teacher, labels, torch.tensor([True]), 4.0)
    rest = 1 - (teacher / 4).softmax(dim=1)[0, labels[0]]
    torch.testing.assert_close(tckd + rest * nckd, kl(student, teacher, 4.0))


def test_pinned_and_two_classes():
    half, quarter = torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]).log()
    tckd, nckd = dkd.dkd(quarter, half, torch.tensor([0]), torch.tensor([True]), 1.0)
    assert tckd.item() == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), rel=1e-6)
    assert nckd.item() == 0


def test_confident_rows_stay_finite():
    student = torch.tensor([[300.0, 0.0, -300.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    teacher = torch.tensor([[300.0, -300.0, 0.0], [300.0, 0.0, -300.0]])
    tckd, nckd = dkd.dkd(student, teacher, torch.tensor([0, 0]), torch.tensor([True, True]), 1.0)
    (tckd + nckd).backward()
    assert tckd.item() == pytest.approx(300)  # log p - log q = 0 - (-600) in one of two rows
    assert nckd.item() == pytest.approx((300 + 300) / 2)
    assert student.grad.isfinite().all()


def test_no_hard_row_is_zero_and_labels_there_may_be_anything(inputs, context):
    loss = dkd.build(dkd.Config(), context())
    given = inputs()
    strange = dataclasses.replace(given, labels_B=torch.where(given.hard_B, given.labels_B, -1))
    assert torch.equal(loss(dataclasses.replace(strange, progress=0.5)), loss(dataclasses.replace(given, progress=0.5)))
    nobody = dataclasses.replace(strange, hard_B=torch.zeros(8, dtype=torch.bool), progress=0.5)
    value = loss(nobody)
    value.backward()
    assert value.item() == 0
    assert torch.equal(given.student_logits_BK.grad, torch.zeros(8, 5))


def test_module_weighs_the_parts_and_warms_up(inputs, context):
    given = inputs()
    logits = (t.detach().double().numpy() for t in (given.student_logits_BK, given.teacher_logits_BK))
    tckd, nckd = oracle(*logits, given.labels_B.numpy(), given.hard_B.numpy(), 3.0)
    loss = dkd.build(dkd.Config(alpha=0.5, beta=6, temperature=3, warmup=0.2), context())
    for progress, factor in [(0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)]:
        value = loss(dataclasses.replace(given, progress=progress)).item()
        assert value == pytest.approx(factor * (0.5 * tckd + 6 * nckd), rel=1e-4)
    at_once = dkd.Config(alpha=0.5, beta=6, temperature=3, warmup=0)
    assert dkd.build(at_once, context())(given).item() == pytest.approx(0.5 * tckd + 6 * nckd, rel=1e-4)
    assert dkd.build(dkd.Config(), context()).factor(1 / 24) == pytest.approx(0.5)
    for wrong in (-0.1, 1.1):
        with pytest.raises(pydantic.ValidationError):
            dkd.Config(warmup=wrong)
