"""kdep against numpy's SVD of the centred pool, and what it does where the pool has too few directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.errors import InputError
from sweeper.losses import kdep

WIDTH = 9


def make_pool(num_rows=200, seed=0, rank=WIDTH):
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((num_rows, rank)) * np.geomspace(3, 0.3, rank)
    return factors @ np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:rank] + 4


def svd(pool, num_components):
    centred = pool - pool.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:num_components].T
    signs = [np.sign(column[np.argmax(abs(column))]) for column in components.T]
    return pool.mean(axis=0), components * signs


def oracle(student, teacher, pool, temperature=0.1, power=3.0):
    mean, components = svd(pool, student.shape[1])
    total = 0.0
    for fs, ft in zip(student, teacher, strict=True):
        aligned = [sum((ft - mean) * column) for column in components.T]
        targets = [np.sign(f) * abs(f / temperature) ** (1 / power) for f in aligned]
        total += sum((a - b) ** 2 for a, b in zip(fs, targets, strict=True))
    return total / student.size


@pytest.mark.parametrize("chunk", [7, 200, 4096])
def test_components_are_those_of_the_svd(chunk, monkeypatch):
    monkeypatch.setattr(kdep, "CHUNK_ROWS", chunk)
    pool = make_pool()
    mean, components = kdep.principal_components(torch.tensor(pool), 5)
    expected_mean, expected = svd(pool, 5)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(components, expected, atol=1e-9)
    assert mean.dtype == components.dtype == torch.float64


def test_sign_does_not_depend_on_the_pool_being_mirrored():
    pool = torch.tensor(make_pool())
    kept, mirrored = (kdep.principal_components(p, 4)[1] for p in (pool, -pool))
    torch.testing.assert_close(kept, mirrored)
    assert (kept.gather(0, kept.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("temperature", "power"), [(0.1, 3.0), (1.0, 1.0), (0.5, 2.0)])
def test_value_and_gradient(temperature, power, inputs, context, central_differences):
    pool = make_pool()
    config = kdep.Config(temperature=temperature, power=power)
    loss = kdep.build(config, context(pool=torch.tensor(pool, dtype=torch.float32)))
    given = inputs(teacher_pre_embedding_BT=torch.tensor(make_pool(8, seed=1), dtype=torch.float32))
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_pre_embedding_BD, given.teacher_pre_embedding_BT)
    )
    value = loss(given)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, pool, temperature, power), rel=1e-4)
    slope = central_differences(lambda point: oracle(point, teacher, pool, temperature, power), student)
    np.testing.assert_allclose(given.student_pre_embedding_BD.grad, slope, rtol=1e-3, atol=1e-4)


def test_power_temperature_pinned():
    features = torch.tensor([-0.8, 0.0, 0.1, 2.7])
    torch.testing.assert_close(kdep.power_temperature(features, 0.1, 3.0), torch.tensor([-2.0, 0.0, 1.0, 3.0]))


def test_wider_student_has_free_entries(inputs, context):
    pool = make_pool()
    loss = kdep.build(kdep.Config(), context(student_dim=15, pool=torch.tensor(pool)))
    given = inputs(student_dim=15, teacher_pre_embedding_BT=torch.tensor(make_pool(8, seed=1)))
    value = loss(given)
    value.backward()
    first = given.student_pre_embedding_BD.detach().double().numpy()[:, :WIDTH]
    assert value.item() == pytest.approx(oracle(first, given.teacher_pre_embedding_BT.numpy(), pool), rel=1e-4)
    gradient = given.student_pre_embedding_BD.grad
    assert (gradient[:, :WIDTH] != 0).all()
    assert (gradient[:, WIDTH:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_directions_without_variance_get_no_target(dtype):
    pool = torch.tensor(make_pool(rank=3), dtype=dtype)
    assert kdep.principal_components(pool, 9)[1].shape[1] == 3
    assert kdep.principal_components(pool + 60, 9)[1].shape[1] == 3
    few = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    assert kdep.principal_components(few, 9)[1].shape[1] == 3


@pytest.mark.parametrize("pool", [torch.full((50, WIDTH), 0.1), torch.zeros(50, WIDTH), torch.randn(1, WIDTH)])
def test_pool_without_variation_is_refused(pool):
    with pytest.raises(InputError, match=f"those of the {len(pool)} training images are all the same"):
        kdep.principal_components(pool, 4)


def test_fit_is_in_the_state(inputs, context):
    loss = kdep.build(kdep.Config(), context())
    assert set(loss.state_dict()) == {"mean_T", "components_TC"}
    assert not list(loss.parameters())
