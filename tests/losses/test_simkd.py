"""simkd against numpy in float64, and the reused classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.losses import simkd


def oracle(student, teacher):
    return np.mean(
        [np.mean([(a - b) ** 2 for a, b in zip(s, t, strict=True)]) for s, t in zip(student, teacher, strict=True)]
    )


def test_value_and_gradient(central_differences):
    student, teacher = np.random.default_rng(1).standard_normal((2, 6, 5))
    tensor = torch.tensor(student, requires_grad=True)
    value = simkd.simkd(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


@pytest.fixture
def built(inputs, context):
    """The loss, a batch, and the student's and teacher's numbers in float64."""
    known, given = context(), inputs()
    loss = simkd.build(simkd.Config(), known)
    projection = [loss.state_dict()[f"student_projector.0.{name}"].double().numpy() for name in ("weight", "bias")]
    return loss, given, projection, [tensor.double().numpy() for tensor in known.classifier()]


def test_module_projects_to_the_teachers_width(built):
    loss, given, (weight, bias), _ = built
    student = given.student_embedding_BD.detach().double().numpy() @ weight.T + bias
    assert loss(given).item() == pytest.approx(oracle(student, given.teacher_embedding_BT.double().numpy()), rel=1e-5)
    assert set(loss.state_dict()) - {"weight_KT", "bias_K"} == {name for name, _ in loss.named_parameters()}


def test_logits_are_the_teachers_classifier_on_the_projection(built):
    loss, given, (weight, bias), (classifier, offset) = built
    student = given.student_embedding_BD.detach().double().numpy()
    folded = student @ (classifier @ weight).T + classifier @ bias + offset
    logits = loss.classify(loss, given.student_embedding_BD)
    np.testing.assert_allclose(logits.detach(), folded, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert given.student_embedding_BD.grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())
    assert not any(buffer.requires_grad for buffer in loss.buffers())


def test_classify_is_float32_inside_autocast(built):
    loss, given, *_ = built
    low = given.student_embedding_BD.detach().bfloat16()
    outside = loss.classify(loss, low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss.classify(loss, low)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(outside, loss.classify(loss, low.float()))


def test_classifier_is_a_copy(context):
    weight, bias = torch.ones(5, 9, dtype=torch.float16), torch.zeros(5)
    loss = simkd.build(simkd.Config(), context(classifier=lambda: (weight, bias)))
    loss.get_buffer("bias_K").add_(1)
    assert torch.equal(bias, torch.zeros(5))
    assert loss.get_buffer("weight_KT").dtype == torch.float32
