"""pkt against scikit-learn's cosines and scipy's relative entropy in float64, its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from sklearn.metrics.pairwise import cosine_similarity

from sweeper.losses import pkt


def probabilities(e):
    similarity = (cosine_similarity(e) + 1) / 2
    return similarity / similarity.sum(axis=1, keepdims=True)


def oracle(student, teacher):
    return rel_entr(probabilities(teacher), probabilities(student)).mean()


@pytest.mark.parametrize("batch", [2, 6])
def test_value_and_gradient(batch, central_differences):
    rng = np.random.default_rng(12)
    student, teacher = rng.standard_normal((batch, 4)), rng.standard_normal((batch, 7)) * 3
    tensor = torch.tensor(student, requires_grad=True)
    value = pkt.pkt(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-4)  # the oracle has no eps
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-3, atol=1e-6)


def test_pinned():
    opposite = torch.tensor([[2.0, 0.0], [-3.0, 0.0]])  # s = (1, 0), (0, 1)
    orthogonal = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # s = (1, 1/2), (1/2, 1)
    torch.testing.assert_close(pkt.neighbour_probabilities(orthogonal), torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3)
    assert pkt.pkt(orthogonal, opposite).item() == pytest.approx(2 * np.log(1.5) / 4, rel=1e-5)
    # where the student gives no probability, eps bounds the logarithm
    expected = 2 * (2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3 / 1e-7)) / 4
    assert pkt.pkt(opposite, orthogonal).item() == pytest.approx(expected, rel=1e-5)


def test_rotation_and_lengths_change_nothing():
    rng = np.random.default_rng(13)
    teacher = torch.tensor(rng.standard_normal((6, 5)))
    rotation = torch.tensor(np.linalg.qr(rng.standard_normal((5, 5)))[0])
    lengths = torch.linspace(0.01, 100, 6, dtype=torch.float64)[:, None]
    assert pkt.pkt(lengths * teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-12)


def test_a_row_of_zeros_is_equally_near_to_all():
    student = torch.zeros(3, 4, requires_grad=True)
    found = pkt.neighbour_probabilities(student)
    torch.testing.assert_close(found, torch.full((3, 3), 1 / 3))
    pkt.pkt(student, torch.eye(3)).backward()
    assert torch.equal(student.grad, torch.zeros(3, 4))


def test_module_takes_the_embeddings(inputs, context):
    given = inputs()
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_embedding_BD, given.teacher_embedding_BT)
    )
    assert pkt.build(pkt.Config(), context())(given).item() == pytest.approx(oracle(student, teacher), rel=1e-4)
