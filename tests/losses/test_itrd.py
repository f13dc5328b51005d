"""itrd against numpy: correlation from its own formula, mutual information from eigenvalues of Gram matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sweeper.losses import itrd


def oracle_correlation(student, teacher, alpha):
    total = 0.0
    for s, t in zip(student.T, teacher.T, strict=True):
        s, t = ((c - c.mean()) / np.sqrt(c.var() + 1e-5) for c in (s, t))
        c = sum(s * t) / len(s) * (len(s) - 1) / len(s)
        total += abs(c - 1) ** (2 * alpha)
    return math.log2(total)


def gram(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return unit @ unit.T


def purity(matrix):
    """tr(A^2) of A = matrix / tr(matrix), by eigenvalues; -log2 of it is Renyi's entropy of order 2."""
    return sum(np.linalg.eigvalsh(matrix / np.trace(matrix)) ** 2)


def oracle_mutual(student, teacher):
    return purity(gram(student)) - purity(gram(student) * gram(teacher))


@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.parametrize("alpha", [0.5, 1.01, 1.5, 3.0])
def test_correlation(alpha, batch, central_differences):
    student, teacher = np.random.default_rng(1).standard_normal((2, batch, 5)) + 2
    tensor = torch.tensor(student, requires_grad=True)
    value = itrd.correlation(tensor, torch.tensor(teacher), alpha)
    value.backward()
    assert value.item() == pytest.approx(oracle_correlation(student, teacher, alpha), rel=1e-9)
    slope = central_differences(lambda point: oracle_correlation(point, teacher, alpha), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-4, atol=1e-8)


def test_correlation_is_that_of_the_authors_standardisation():
    """Standardised over B - 1 and summed over B, far above the 1e-5 that is added to the variances."""
    student, teacher = np.random.default_rng(2).standard_normal((2, 6, 4)) * 1e4
    s, t = ((z - z.mean(axis=0)) / z.std(axis=0, ddof=1) for z in (student, teacher))
    expected = math.log2(sum(abs(np.einsum("bx,bx->x", s, t) / 6 - 1) ** 3))
    assert itrd.correlation(torch.tensor(student), torch.tensor(teacher), 1.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("batch", [2, 7])
def test_mutual(batch, central_differences):
    student, teacher = np.random.default_rng(3).standard_normal((2, batch, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = itrd.mutual(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle_mutual(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle_mutual(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_bounds():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e3
    for alpha in (0.5, 1.5, 40.0):
        best, worst = (itrd.correlation(z, sign * z + 3, alpha).item() for sign in (1, -1))
        assert best == pytest.approx(math.log2(5) - 2 * alpha * 3, rel=1e-4)
        assert worst == pytest.approx(math.log2(5) + 2 * alpha * math.log2(2 - 1 / 8), rel=1e-4)
        unrelated = itrd.correlation(z, torch.ones_like(z), alpha).item()
        assert unrelated == pytest.approx(math.log2(5))
    same = torch.ones(4, 3)
    assert itrd.mutual(same, same).item() == pytest.approx(0, abs=1e-6)
    assert itrd.mutual(torch.eye(4), torch.eye(4)).item() == 0  # cos_S = 1 only where cos_T = 1
    assert itrd.mutual(same, torch.eye(4)).item() == pytest.approx(12 / 16)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        itrd.correlation(torch.ones(1, 3), torch.ones(1, 3), 1.5)


@pytest.mark.parametrize("batch", [2, 512])
def test_agreement_is_finite(batch, inputs, context):
    """A student whose map already gives the teacher's embedding: log2 of the smallest sum, with a finite slope."""
    z = torch.randn(batch, 9, generator=torch.Generator().manual_seed(1))
    student = z.clone().requires_grad_()
    value = itrd.correlation(student, z, 40.0)
    value.backward()
    assert value.item() == pytest.approx(math.log2(9) - 80 * math.log2(batch), rel=0.05)
    assert student.grad.isfinite().all()


def test_module_is_the_weighted_terms(inputs, context):
    loss = itrd.build(itrd.Config(alpha=1.2, w_correlation=3.0, w_mutual=0.7), context())
    given = inputs()
    weight, bias = (loss.state_dict()[f"student_projector.0.{name}"].double().numpy() for name in ("weight", "bias"))
    student = given.student_embedding_BD.detach().double().numpy() @ weight.T + bias
    teacher = given.teacher_embedding_BT.double().numpy()
    expected = [3 * oracle_correlation(student, teacher, 1.2), 0.7 * oracle_mutual(student, teacher)]
    assert [term.item() for term in loss.summands(given)] == pytest.approx(expected, rel=1e-4)
