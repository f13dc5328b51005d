"""align_uniform against loops in float64, its bounds, and the projectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.losses import align_uniform
from sweeper.losses._module import projector


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle_alignment(student, teacher, alpha):
    return np.mean([math.sqrt(sum((s - t) ** 2)) ** alpha for s, t in zip(student, teacher, strict=True)])


def oracle_uniformity(z, t):
    pairs = list(itertools.combinations(z, 2))
    return math.log(sum(math.exp(-t * sum((a - b) ** 2)) for a, b in pairs) / len(pairs))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment(alpha, central_differences):
    student, teacher = np.random.default_rng(1).standard_normal((2, 6, 5))
    student, teacher = unit(student), unit(teacher)
    tensor = torch.tensor(student, requires_grad=True)
    value = align_uniform.alignment(tensor, torch.tensor(teacher), alpha)
    value.backward()
    assert value.item() == pytest.approx(oracle_alignment(student, teacher, alpha), rel=1e-9)
    slope = central_differences(lambda point: oracle_alignment(point, teacher, alpha), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 2.0, 5.0])
@pytest.mark.parametrize("batch", [2, 7])
def test_uniformity(t, batch, central_differences):
    z = unit(np.random.default_rng(2).standard_normal((batch, 5)))
    tensor = torch.tensor(z, requires_grad=True)
    value = align_uniform.uniformity(tensor, t)
    value.backward()
    assert value.item() == pytest.approx(oracle_uniformity(z, t), rel=1e-9)
    slope = central_differences(lambda point: oracle_uniformity(point, t), z)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned_values():
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert align_uniform.alignment(poles, poles.flip(0), 2.0).item() == pytest.approx(4)
    assert align_uniform.uniformity(poles, 2.0).item() == pytest.approx(-8)
    assert align_uniform.uniformity(poles[:1].repeat(3, 1), 2.0).item() == pytest.approx(0)
    assert align_uniform.uniformity(poles, 500.0).item() == pytest.approx(-2000)  # exp underflows


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_equal_vectors_have_no_slope(alpha):
    z = torch.eye(3, requires_grad=True)
    align_uniform.alignment(z, torch.eye(3), alpha).backward()
    assert torch.equal(z.grad, torch.zeros(3, 3))


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        align_uniform.uniformity(torch.ones(1, 3), 2.0)


def test_module_is_the_weighted_sum(inputs, context):
    config = align_uniform.Config(projector="mocov2", dim=4, alpha=1.0, t=3.0, w_align=0.7, w_unif=0.4)
    loss = align_uniform.build(config, context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}

    def project(side, rows):
        first, last = (state[f"{side}_projector.{i}.weight"].T for i in (0, 2))
        hidden = np.maximum(rows @ first + state[f"{side}_projector.0.bias"], 0)
        return unit(hidden @ last + state[f"{side}_projector.2.bias"])

    student = project("student", given.student_embedding_BD.detach().double().numpy())
    teacher = project("teacher", given.teacher_embedding_BT.double().numpy())
    spread = (oracle_uniformity(student, 3.0) + oracle_uniformity(teacher, 3.0)) / 2
    expected = 0.7 * oracle_alignment(student, teacher, 1.0) + 0.4 * spread
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("linear", [nn.Linear]),
        ("mocov2", [nn.Linear, nn.ReLU, nn.Linear]),
        ("simclr", [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]),
        ("simclrv2", [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear, nn.BatchNorm1d]),
    ],
)
def test_projectors(kind, layers, inputs, context):
    built = projector(kind, 6, 3)
    assert [type(layer) for layer in built] == layers
    assert built(torch.randn(2, 6)).shape == (2, 3)
    if kind.startswith("simclr"):
        assert not built[-1].affine
    loss = align_uniform.build(align_uniform.Config(projector=kind), context())
    value = loss(inputs(batch=2))
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
