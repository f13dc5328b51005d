"""seed against distributions written out in loops in float64, and its queue."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from sweeper.losses import seed


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def oracle(student, teacher, queue, tau_student, tau_teacher):
    total = 0.0
    for s, t in zip(unit(student), unit(teacher), strict=True):
        stored = [t, *unit(queue)]
        log_p = log_softmax([float(s @ q) / tau_student for q in stored])
        p = softmax([float(t @ q) / tau_teacher for q in stored])
        total -= sum(p * log_p)
    return total / len(student)


def loss_of(student, teacher, queue, tau_student, tau_teacher):
    rows = (torch.nn.functional.normalize(torch.as_tensor(z), dim=1) for z in (student, teacher, queue))
    return seed.similarity_cross_entropy(*rows, tau_student, tau_teacher)


@pytest.mark.parametrize(("tau_student", "tau_teacher"), [(0.2, 0.07), (0.1, 1.0)])
def test_value_and_gradient(tau_student, tau_teacher, central_differences):
    rng = np.random.default_rng(1)
    student, teacher, queue = rng.standard_normal((4, 5)), rng.standard_normal((4, 5)), rng.standard_normal((11, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = loss_of(tensor, teacher, queue, tau_student, tau_teacher)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, queue, tau_student, tau_teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, queue, tau_student, tau_teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned_values():
    axes = torch.eye(3)
    hot = loss_of(axes[:1], axes[:1], axes[1:], 1.0, 1e-4)  # the teacher puts all on its own vector
    assert hot.item() == pytest.approx(math.log(1 + 2 / math.e))
    flat = loss_of(axes[:1], axes[1:2], axes[2:], 1.0, 1e6)
    assert flat.item() == pytest.approx(math.log(2), rel=1e-5)


def test_lowest_at_the_teacher():
    """At equal temperatures nothing is below the teacher's own entropy, which the teacher's vectors reach."""
    teacher, queue, other = np.random.default_rng(2).standard_normal((3, 6, 5))
    lowest = np.mean([entropy(softmax([float(t @ q) / 0.1 for q in [t, *unit(queue)]])) for t in unit(teacher)])
    assert loss_of(teacher, teacher, queue, 0.1, 0.1).item() == pytest.approx(lowest, rel=1e-9)
    assert loss_of(other, teacher, queue, 0.1, 0.1).item() > lowest


@pytest.mark.parametrize(("queue", "taken"), [(65536, range(9)), (9, range(9)), (3, [0, 3, 6]), (1, [0])])
def test_queue_is_taken_evenly_from_the_pool(queue, taken, context):
    pool = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * 5
    loss = seed.build(seed.Config(queue=queue), context(pool=pool.half()))
    np.testing.assert_allclose(loss.get_buffer("queue_QT"), unit(pool.numpy())[list(taken)], atol=2e-3)
    assert loss.get_buffer("queue_QT").dtype == torch.float32
    assert not any("queue" in name for name in loss.state_dict())


def test_module_projects_to_the_teachers_width(inputs, context):
    pool = np.random.default_rng(3).standard_normal((20, 9))
    config = seed.Config(projector="linear", tau_student=0.3, tau_teacher=0.2)
    loss = seed.build(config, context(pool=torch.tensor(pool)))
    given = inputs()
    weight, bias = (loss.state_dict()[f"student_projector.0.{name}"].double().numpy() for name in ("weight", "bias"))
    student = given.student_embedding_BD.detach().double().numpy() @ weight.T + bias
    expected = oracle(student, given.teacher_embedding_BT.double().numpy(), pool, 0.3, 0.2)
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
