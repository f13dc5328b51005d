"""sp against scikit-learn's row normalisation in float64, its invariances and its bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import normalize

from sweeper.losses import sp


def oracle(student, teacher):
    grams = [np.array([[sum(a * b) for b in e] for a in e]) for e in (student, teacher)]
    student, teacher = (normalize(gram) for gram in grams)
    return np.linalg.norm(teacher - student) ** 2 / len(student) ** 2


@pytest.mark.parametrize("batch", [2, 6])
def test_value_and_gradient(batch, central_differences):
    rng = np.random.default_rng(6)
    student, teacher = rng.standard_normal((batch, 4)), rng.standard_normal((batch, 7)) * 3
    tensor = torch.tensor(student, requires_grad=True)
    value = sp.similarity_preserving(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    student, teacher = torch.eye(2), torch.tensor([[3.0], [3.0]])  # rows (1, 0), (0, 1) against (1, 1) / sqrt(2)
    expected = 2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4
    assert sp.similarity_preserving(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_rotation_and_scale_change_nothing():
    rng = np.random.default_rng(7)
    teacher = torch.tensor(rng.standard_normal((6, 5)))
    rotation = torch.tensor(np.linalg.qr(rng.standard_normal((5, 5)))[0])
    assert sp.similarity_preserving(0.01 * teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-12)


def test_module_takes_the_embeddings(inputs, context):
    given = inputs()
    loss = sp.build(sp.Config(), context())
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_embedding_BD, given.teacher_embedding_BT)
    )
    value = loss(given).item()
    assert value == pytest.approx(oracle(student, teacher), rel=1e-5)
    assert value <= 4 / 8
