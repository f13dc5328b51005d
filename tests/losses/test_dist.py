"""dist against numpy's correlation coefficients in float64, its bounds, and constant rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr

from sweeper.losses import dist


def oracle(student, teacher, temperature):
    p, q = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    rows = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)])
    columns = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * np.array([rows, columns])


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient(temperature, part, central_differences):
    student, teacher = np.random.default_rng(4).standard_normal((2, 6, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = dist.dist(tensor, torch.tensor(teacher), temperature)[part]
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, temperature)[part], rel=1e-5)
    slope = central_differences(lambda point: oracle(point, teacher, temperature)[part], student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-4, atol=1e-6)


def test_module_weighs_rows_and_columns(inputs, context):
    given = inputs()
    student, teacher = (t.detach().double().numpy() for t in (given.student_logits_BK, given.teacher_logits_BK))
    rows, columns = oracle(student, teacher, 2.0)
    loss = dist.build(dist.Config(beta=0.3, gamma=5, temperature=2), context())
    assert loss(given).item() == pytest.approx(0.3 * rows + 5 * columns, rel=1e-4)


def test_bounds():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])  # of two classes: reversed rows are anticorrelated
    for part in dist.dist(logits, logits, 3.0):
        assert part.item() == pytest.approx(0, abs=1e-5)
    for part in dist.dist(logits, logits.flip(1), 3.0):
        assert part.item() == pytest.approx(2 * 3**2, rel=1e-5)


def test_blind_to_factor_and_shift_of_each_vector():
    student, teacher = torch.rand(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor, shift = torch.linspace(0.1, 9, 6)[:, None], torch.linspace(-20, 20, 6)[:, None]
    for dim, (f, s) in enumerate([(factor[:5].T, shift[:5].T), (factor, shift)]):
        torch.testing.assert_close(
            dist.pearson(student * f + s, teacher, dim), dist.pearson(student, teacher, dim), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_constant_student_has_no_slope(constant):
    student = torch.full((4, 5), constant, requires_grad=True)
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    rows, columns = dist.dist(student, teacher, 1.0)
    assert (rows.item(), columns.item()) == (1, 1)
    (rows + columns).backward()
    assert torch.equal(student.grad, torch.zeros(4, 5))
