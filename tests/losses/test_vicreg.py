"""vicreg's terms against numpy in float64, and the standardised teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.errors import InputError
from sweeper.losses import vicreg


def oracle_variance(z):
    return np.mean([max(0.0, 1 - np.sqrt(np.var(column, ddof=1) + 1e-4)) for column in z.T])


def oracle_covariance(z):
    c = np.atleast_2d(np.cov(z.T))
    return sum(c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j) / len(c)


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("name", ["variance", "covariance"])
def test_value_and_gradient(name, batch, central_differences):
    oracle = {"variance": oracle_variance, "covariance": oracle_covariance}[name]
    z = np.random.default_rng(3).standard_normal((batch, 6)) * np.geomspace(0.3, 3, 6) + 2
    tensor = torch.tensor(z, requires_grad=True)
    value = getattr(vicreg, name)(tensor)
    value.backward()
    assert value.item() == pytest.approx(oracle(z), rel=1e-9)
    assert value > 0
    np.testing.assert_allclose(tensor.grad, central_differences(oracle, z), rtol=1e-5, atol=1e-8)


def test_pinned_values():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert vicreg.variance(signs).item() == 0
    assert vicreg.covariance(signs).item() == 0
    assert vicreg.variance(torch.ones(3, 2)).item() == pytest.approx(0.99)
    assert vicreg.covariance(signs[:, :1].repeat(1, 3)).item() == pytest.approx(2 * (4 / 3) ** 2)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        vicreg.variance(torch.ones(1, 3))


def test_module_is_the_weighted_terms(inputs, context):
    pool = np.random.default_rng(4).standard_normal((50, 5)) * [1, 10, 0, 0.1, 3] + [0, 300, 7, 1, -2]
    config = vicreg.Config(projector="linear", w_invariance=3.0, w_variance=5.0, w_covariance=7.0)
    teacher = np.random.default_rng(5).standard_normal((8, 5))
    loss = vicreg.build(config, context(pool=torch.tensor(pool)))
    given = inputs(teacher_embedding_BT=torch.tensor(teacher))
    alive = [0, 1, 3, 4]
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    student = given.student_embedding_BD.detach().double().numpy() @ state["student_projector.0.weight"].T
    student = student + state["student_projector.0.bias"]
    target = ((teacher - pool.mean(axis=0)) / np.where(pool.std(axis=0) > 0, pool.std(axis=0), 1))[:, alive]
    expected = [3 * np.mean((student - target) ** 2), 5 * oracle_variance(student), 7 * oracle_covariance(student)]
    assert [term.item() for term in loss.summands(given)] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(state["columns_P"], alive)


def test_variance_of_the_target_is_1_over_the_pool(inputs, context):
    pool = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 2, 9) + 5
    loss = vicreg.build(vicreg.Config(projector="linear"), context(pool=pool.half()))
    target = (pool - loss.get_buffer("mean_P")) / loss.get_buffer("std_P")
    torch.testing.assert_close(target.var(dim=0), torch.full((9,), 64 / 63), rtol=1e-2, atol=0)
    torch.testing.assert_close(target.mean(dim=0), torch.zeros(9), rtol=0, atol=1e-2)


def test_pool_without_variation_is_refused(context):
    with pytest.raises(InputError, match="those of the 50 training images are all the same"):
        vicreg.build(vicreg.Config(), context(pool=torch.full((50, 9), 0.1)))
