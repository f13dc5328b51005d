"""What is worked out from a pool, and that no loss holds a matrix of N x N for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper import registry
from sweeper.losses import _pool


class Largest(TorchDispatchMode):
    """Remembers the most entries of a tensor that any operation gave."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.entries = max(self.entries, value.numel())
        return result


@pytest.mark.parametrize("kind", ["bingo", "crd", "seed"])
def test_build_holds_no_square_of_the_pool(kind, context, monkeypatch):
    num_rows, width = 3000, 9
    monkeypatch.setattr(_pool, "MOST_SIMILARITIES", 20_000)
    pool = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))
    module = registry.load("losses", kind)
    known = context(pool=pool)
    with Largest() as seen:
        loss = module.build(module.Config(kind=kind, **({"dim": 8} if kind == "crd" else {})), known)
    assert num_rows * 8 <= seen.entries <= num_rows * width
    assert all(buffer.numel() <= num_rows * width for buffer in loss.buffers())


@pytest.mark.parametrize("most", [1, 500, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_do_not_depend_on_the_strips(most, dtype, monkeypatch):
    monkeypatch.setattr(_pool, "MOST_SIMILARITIES", most)
    pool = np.random.default_rng(1).standard_normal((100, 6)) + 0.5
    expected = NearestNeighbors(n_neighbors=8, metric="cosine").fit(pool).kneighbors(pool, return_distance=False)
    np.testing.assert_array_equal(_pool.nearest_neighbours(torch.tensor(pool, dtype=dtype), 7), expected[:, 1:])


def test_neighbours_of_equal_and_dead_rows():
    pool = torch.zeros(5, 3)
    pool[:2] = torch.tensor([1.0, 2.0, 2.0])
    found = _pool.nearest_neighbours(pool, 10)
    assert found.shape == (5, 4)
    assert [set(row) for row in found.tolist()] == [set(range(5)) - {i} for i in range(5)]
    assert found[:2, 0].tolist() == [1, 0]


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_mean_and_std(chunk, dtype, monkeypatch):
    monkeypatch.setattr(_pool, "CHUNK_ROWS", chunk)
    pool = torch.tensor(
        np.random.default_rng(2).standard_normal((50, 4)) * [1, 20, 0, 0.2] + [0, 9, 7.7, 1], dtype=dtype
    )
    mean, std = _pool.mean_and_std(pool)
    np.testing.assert_allclose(mean, pool.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(std, pool.double().numpy().std(axis=0) * [1, 1, 0, 1], rtol=1e-12)


def test_rounding_is_no_variation():
    noise = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    pool = torch.cat([100 + 0.01 * noise, 100 + noise, 0.01 * noise], dim=1)
    assert (_pool.mean_and_std(pool)[1] > 0).tolist() == [False, True, True]
