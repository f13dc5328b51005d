"""rkd against loops over pairs and triples in float64, its invariances, and near and equal rows in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import huber

from sweeper.losses import rkd


def norm(x):
    return math.sqrt(sum(x**2))


def pair_distances(e):
    d = np.array([[norm(a - b) for b in e] for a in e])
    return d / np.mean([d[i, j] for i in range(len(e)) for j in range(len(e)) if i != j])


def triple_cosines(e):
    batch = range(len(e))
    cosines = np.zeros((len(e),) * 3)
    for i in batch:
        for j in batch:
            for k in batch:
                if j not in (i, k):
                    a, b = e[i] - e[j], e[k] - e[j]
                    cosines[i, j, k] = sum(a * b) / (norm(a) * norm(b))
    return cosines


def oracle(student, teacher):
    pairs = np.mean(huber(1.0, pair_distances(student) - pair_distances(teacher)))
    return np.array([pairs, np.mean(huber(1.0, triple_cosines(student) - triple_cosines(teacher)))])


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("batch", [3, 5])
def test_value_and_gradient(batch, part, central_differences):
    rng = np.random.default_rng(9)
    student, teacher = rng.standard_normal((batch, 3)), rng.standard_normal((batch, 5)) * 4 + 2
    student[0] *= 20  # far away: its differences leave huber's quadratic part
    tensor = torch.tensor(student, requires_grad=True)
    value = rkd.rkd(tensor, torch.tensor(teacher))[part]
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher)[part], rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher)[part], student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    torch.testing.assert_close(rkd.relative(rkd.distances(right)), torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4)
    cosines = rkd.angles(rkd.distances(right))
    torch.testing.assert_close(cosines[0], torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    torch.testing.assert_close(cosines[1], torch.tensor([[1.0, 0, 0.6], [0, 0, 0], [0.6, 0, 1]]))
    line = torch.tensor(
        [[0.0], [3.0], [6.0]]
    )  # cos of the angle at 0: 1 instead of 0; at 3: -1, not .6; at 6: 1, not .8
    expected = 2 * (0.5 * 1**2 + (1.6 - 0.5) + 0.5 * 0.2**2) / 27
    assert rkd.rkd(line, right)[1].item() == pytest.approx(expected, rel=1e-5)


def test_shift_rotation_and_scale_change_nothing():
    rng = np.random.default_rng(10)
    teacher = torch.tensor(rng.standard_normal((5, 4)))
    rotation = torch.tensor(np.linalg.qr(rng.standard_normal((4, 4)))[0])
    for part in rkd.rkd(0.01 * teacher @ rotation + 7, teacher):
        assert part.item() == pytest.approx(0, abs=1e-12)


def test_near_rows_keep_their_angles_in_float32():
    rng = np.random.default_rng(11)
    student, teacher = rng.standard_normal((2, 5, 4)).astype(np.float32)
    student[1] = student[0] + 1e-3 * teacher[1]
    found = [part.item() for part in rkd.rkd(torch.tensor(student) + 100, torch.tensor(teacher))]
    shifted = (torch.tensor(student) + 100).double().numpy()
    np.testing.assert_allclose(found, oracle(shifted, teacher.astype(float)), rtol=1e-3)


def test_equal_rows_have_finite_gradients():
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    teacher = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    cosines = rkd.angles(rkd.distances(student))
    assert (cosines[0, 1] == 0).all()
    sum(rkd.rkd(student, teacher)).backward()
    assert student.grad.isfinite().all()
    assert student.grad[2].abs().max() > 0


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        rkd.rkd(torch.ones(1, 3), torch.ones(1, 3))


def test_module_weighs_its_summands(inputs, context):
    given = inputs()
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_embedding_BD, given.teacher_embedding_BT)
    )
    for config, weights in [(rkd.Config(), (25, 50)), (rkd.Config(w_distance=0.5, w_angle=3), (0.5, 3))]:
        found = [part.item() for part in rkd.build(config, context()).summands(given)]
        np.testing.assert_allclose(found, weights * oracle(student, teacher), rtol=1e-5)
