"""Deviations from the mean against numpy, and what counts as no variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper.losses._variation import deviations


@pytest.mark.parametrize("axis", [0, 1])
def test_deviations(axis):
    x = np.random.default_rng(0).standard_normal((4, 5)) * 3 + 7
    apart, squared = deviations(torch.tensor(x), axis)
    expected = x - np.mean(x, axis=axis, keepdims=True)
    np.testing.assert_allclose(apart, expected, rtol=1e-12)
    np.testing.assert_allclose(squared, np.sum(expected**2, axis=axis, keepdims=True), rtol=1e-12)


def test_rounding_is_no_variation_and_has_no_slope():
    rounding = torch.full((7,), 0.1) + torch.arange(7) % 2 * torch.finfo(torch.float32).eps * 0.1
    x = torch.stack([torch.zeros(7), torch.full((7,), 0.1), rounding, 1 + 1e-5 * torch.arange(7)]).requires_grad_()
    apart, squared = deviations(x, 1)
    assert torch.equal(apart[:3], torch.zeros(3, 7))
    assert torch.equal(squared[:3], torch.ones(3, 1))
    assert (apart[3] != 0).sum() == 6
    (apart * torch.arange(7)).sum().backward()
    assert torch.equal(x.grad[:3], torch.zeros(3, 7))
    torch.testing.assert_close(x.grad[3], torch.arange(7.0) - 3)
