"""align against loops in float64; its teacher's side has nothing to train."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sweeper.losses import align


def oracle(student, teacher, alpha):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = s / math.sqrt(sum(s**2)), t / math.sqrt(sum(t**2))
        total += math.sqrt(sum((s - t) ** 2)) ** alpha
    return total / len(student)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_value_and_gradient(alpha, inputs, context, central_differences):
    loss = align.build(align.Config(projector="mocov2", alpha=alpha), context()).double()
    loss.requires_grad_(False)
    state = {name: value.numpy() for name, value in loss.state_dict().items()}

    def project(rows):
        first, last = (state[f"student_projector.{i}.weight"].T for i in (0, 2))
        hidden = np.maximum(rows @ first + state["student_projector.0.bias"], 0)
        return hidden @ last + state["student_projector.2.bias"]

    given = inputs()
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_embedding_BD, given.teacher_embedding_BT)
    )
    value = loss.float()(given)
    value.backward()
    assert value.item() == pytest.approx(oracle(project(student), teacher, alpha), rel=1e-5)
    slope = central_differences(lambda point: oracle(project(point), teacher, alpha), student)
    np.testing.assert_allclose(given.student_embedding_BD.grad, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mocov2", "simclr", "simclrv2"])
def test_only_the_student_is_projected(kind, inputs, context):
    loss = align.build(align.Config(projector=kind), context())
    assert {name.split(".")[0] for name in loss.state_dict()} == {"student_projector"}
    given = inputs()
    projected = loss.get_submodule("student_projector")(given.student_embedding_BD).detach().numpy()
    assert projected.shape == (8, 9)
    assert loss(given).item() == pytest.approx(oracle(projected, given.teacher_embedding_BT.numpy(), 2.0), rel=1e-5)


def test_bounds_and_lengths(inputs, context):
    loss = align.build(align.Config(projector="linear", alpha=3.0), context(student_dim=9))
    with torch.no_grad():
        loss.student_projector[0].weight.copy_(torch.eye(9))
        loss.student_projector[0].bias.zero_()
    teacher = inputs().teacher_embedding_BT
    lengths = torch.linspace(0.01, 100, 8)[:, None]
    assert loss(inputs(student_embedding_BD=teacher * lengths)).item() == pytest.approx(0, abs=1e-9)
    assert loss(inputs(student_embedding_BD=-teacher * lengths)).item() == pytest.approx(8, rel=1e-6)
