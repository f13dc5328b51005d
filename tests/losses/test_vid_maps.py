"""vid_maps against scipy's normal density in float64, its two terms and where the variance starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_oracles import convolved, draw, maps_of, same_size, state_of
from scipy.stats import norm

from sweeper.losses import vid_maps

CONSTANT = math.log(2 * math.pi) / 2


def oracle(mean, teacher, variances):
    density = [norm.logpdf(teacher[:, c], mean[:, c], math.sqrt(variance)) for c, variance in enumerate(variances)]
    return -np.mean(density) - CONSTANT


def test_value_and_gradient(central_differences):
    mean, teacher = draw(1, 2, 2, 3, 2, 2)
    variances = np.array([0.2, 1.0, 6.0])
    tensors = torch.tensor(mean, requires_grad=True), torch.tensor(variances, requires_grad=True)
    terms = vid_maps.gaussian_terms(tensors[0], torch.tensor(teacher), tensors[1])
    sum(terms).backward()
    assert sum(terms).item() == pytest.approx(oracle(mean, teacher, variances), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, variances), mean)
    np.testing.assert_allclose(tensors[0].grad, slope, rtol=1e-5, atol=1e-8)
    slope = central_differences(lambda point: oracle(mean, teacher, point), variances)
    np.testing.assert_allclose(tensors[1].grad, slope, rtol=1e-5, atol=1e-8)


def test_terms_pinned():
    mean, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)
    squared, logarithm = vid_maps.gaussian_terms(mean, teacher, torch.tensor([math.e**-2, 1.0]))
    assert squared.item() == pytest.approx((2 * math.e**2 + 4.5) / 2)
    assert logarithm.item() == pytest.approx(-0.5)


@pytest.mark.parametrize("initial", [0.001, 0.5, 5.0, 50.0])
def test_variance_starts_where_it_is_told(initial, context):
    loss = vid_maps.build(vid_maps.Config(initial_variance=initial), context())
    raw = state_of(loss)
    assert [raw[f"raw_variances.{i}"].shape for i in range(3)] == [(3,), (7,), (9,)]
    for i in range(3):
        variance = np.log1p(np.exp(raw[f"raw_variances.{i}"])) + 1e-5
        np.testing.assert_allclose(variance, initial, rtol=1e-3 if initial < 0.01 else 1e-5)


def test_module_sums_the_pairs_by_term(inputs, context):
    loss = vid_maps.build(vid_maps.Config(initial_variance=0.3), context())
    with torch.no_grad():
        loss.raw_variances[1].copy_(torch.linspace(-2, 2, 7))
    given, state = inputs(), state_of(loss)
    expected, logarithms = 0.0, 0.0
    for i, pair in enumerate(maps_of(given)):
        mean, teacher = same_size(*pair)
        for layer in (0, 2, 4):
            mean = convolved(np.maximum(mean, 0) if layer else mean, state[f"regressors.{i}.{layer}.weight"])
        variances = np.log1p(np.exp(state[f"raw_variances.{i}"])) + 1e-5
        expected += oracle(mean, teacher, variances)
        logarithms += np.mean(np.log(variances)) / 2
    squared, logarithm = loss.summands(given)
    assert logarithm.item() == pytest.approx(logarithms, rel=1e-4)
    assert squared.item() + logarithm.item() == pytest.approx(expected, rel=1e-5)
