"""barlow_twins against numpy's correlation matrix in float64, its invariances, and the projectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.losses import barlow_twins

BATCH_NORM_EPS = 1e-5


def standardized(z):
    return (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + BATCH_NORM_EPS)


def oracle(student, teacher, redundancy):
    student, teacher = standardized(student), standardized(teacher)
    total = 0.0
    for i, a in enumerate(student.T):
        for j, b in enumerate(teacher.T):
            c = sum(a * b) / len(student)
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


@pytest.mark.parametrize("redundancy", [0.0, 5e-3, 1.0])
@pytest.mark.parametrize("batch", [2, 7])
def test_value_and_gradient(batch, redundancy, central_differences):
    student, teacher = np.random.default_rng(1).standard_normal((2, batch, 5)) * 3 + 1
    tensor = torch.tensor(student, requires_grad=True)
    value = barlow_twins.barlow_twins(tensor, torch.tensor(teacher), redundancy)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, redundancy), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, redundancy), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-4, atol=1e-7)


def test_correlation_is_numpys():
    """Far above the 1e-5 that is added to the variances, c is Pearson's correlation."""
    student, teacher = np.random.default_rng(2).standard_normal((2, 9, 3)) * 1e4
    c = np.corrcoef(student.T, teacher.T)[:3, 3:]
    expected = sum((1 - np.diag(c)) ** 2) + 0.3 * (sum(c.ravel() ** 2) - sum(np.diag(c) ** 2))
    value = barlow_twins.barlow_twins(torch.tensor(student), torch.tensor(teacher), 0.3)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_pinned_values():
    signs = 1e3 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)

    def value(student, teacher):
        return barlow_twins.barlow_twins(student, teacher, 0.25).item()

    assert value(signs, 5 * signs + 7) == pytest.approx(0, abs=1e-9)  # scale and place of a column do not count
    assert value(signs, -signs) == pytest.approx(8)
    assert value(signs, signs.flip(1)) == pytest.approx(2 + 0.25 * 2)
    assert value(signs[:, :1].repeat(1, 2), signs[:, :1].repeat(1, 2)) == pytest.approx(0.25 * 2)
    assert value(torch.zeros_like(signs), signs) == 2


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        barlow_twins.barlow_twins(torch.ones(1, 3), torch.ones(1, 3), 1.0)


def test_module_projects_both_sides(inputs, context):
    loss = barlow_twins.build(barlow_twins.Config(projector="linear", dim=4, redundancy=0.1), context())
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    assert set(state) == {"student_projector.0.weight", "teacher_projector.0.weight"}
    student = given.student_embedding_BD.detach().double().numpy() @ state["student_projector.0.weight"].T
    teacher = given.teacher_embedding_BT.double().numpy() @ state["teacher_projector.0.weight"].T
    assert loss(given).item() == pytest.approx(oracle(student, teacher, 0.1), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "with_bias"),
    [("linear", [False]), ("mocov2", [True, False]), ("simclr", [False] * 2), ("simclrv2", [False] * 3)],
)
def test_no_bias_before_a_standardisation(kind, with_bias, inputs, context):
    loss = barlow_twins.build(barlow_twins.Config(projector=kind, dim=7), context())
    for side in ("student_projector", "teacher_projector"):
        layers = [layer for layer in loss.get_submodule(side) if isinstance(layer, nn.Linear)]
        assert [layer.bias is not None for layer in layers] == with_bias
    loss(inputs()).backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in loss.parameters())
