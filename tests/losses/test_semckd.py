"""semckd against loops over images and pairs of maps in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_oracles import batch_normed, convolved, draw, maps_of, same_size, state_of
from sklearn.metrics.pairwise import cosine_similarity

from sweeper.losses import semckd


def oracle_weights(queries, keys):
    """B x S x L from S x B x X and L x B x X."""
    weights = np.zeros((queries.shape[1], len(queries), len(keys)))
    for b in range(len(weights)):
        for s, query in enumerate(queries):
            energies = [math.exp(sum(query[b] * key[b])) for key in keys]
            weights[b, s] = [energy / sum(energies) for energy in energies]
    return weights


def embedded(state, name, maps):
    found = []
    for i, one in enumerate(maps):
        first, first_bias, last, last_bias = (
            state[f"{name}.{i}.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        rows = []
        for row in cosine_similarity(one.reshape(len(one), -1)):
            entries = [np.maximum(first[:, 0] * value + first_bias, 0) @ last.T + last_bias for value in row]
            query = np.concatenate(entries)
            rows.append(query / math.sqrt(sum(query**2)))
        found.append(rows)
    return np.array(found)


def regressed(state, name, maps):
    for conv, norm in ((0, 1), (3, 4)):
        convolution = convolved(maps, state[f"{name}.{conv}.weight"])
        maps = np.maximum(batch_normed(convolution, state[f"{name}.{norm}.weight"], state[f"{name}.{norm}.bias"]), 0)
    return convolved(maps, state[f"{name}.6.weight"])


def oracle(state, pairs):
    students, teachers = zip(*pairs, strict=True)
    weights = oracle_weights(embedded(state, "queries", students), embedded(state, "keys", teachers))
    total = 0.0
    for i, student in enumerate(students):
        for j, teacher in enumerate(teachers):
            small_student, small_teacher = same_size(student, teacher)
            squares = (regressed(state, f"regressors.{i}.{j}", small_student) - small_teacher) ** 2
            total += sum(weights[b, i, j] * squares[b].mean() for b in range(len(squares)))
    return total / (len(students[0]) * len(students))


def test_similarities():
    maps = draw(1, 4, 3, 2, 2)
    expected = cosine_similarity(maps.reshape(4, -1))
    np.testing.assert_allclose(semckd.similarities(torch.tensor(maps)), expected, rtol=1e-9)
    maps[2] = 0
    assert (semckd.similarities(torch.tensor(maps))[2] == 0).all()


def test_assignments(central_differences):
    queries, keys, factors = draw(2, 2, 4, 5), draw(3, 3, 4, 5), draw(4, 4, 2, 3)
    tensor = torch.tensor(queries, requires_grad=True)
    found = semckd.assignments(tensor, torch.tensor(keys))
    np.testing.assert_allclose(found.detach(), oracle_weights(queries, keys), rtol=1e-9)
    np.testing.assert_allclose(found.detach().sum(dim=2), 1)
    (found * torch.tensor(factors)).sum().backward()
    slope = central_differences(lambda point: (oracle_weights(point, keys) * factors).sum(), queries)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_calibrated_pinned():
    distances = torch.tensor([[[1.0, 3.0], [2.0, 8.0]], [[0.0, 4.0], [6.0, 6.0]]])
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.75]]])
    assert semckd.calibrated(distances, weights).item() == pytest.approx((1 + 5 + 4 + 6) / 4)


@pytest.mark.parametrize("batch", [2, 5])
def test_module(batch, inputs, context):
    loss = semckd.build(semckd.Config(attention_dim=3, width=4), context())
    given, state = inputs(batch=batch), state_of(loss)
    assert loss(given).item() == pytest.approx(oracle(state, maps_of(given)), rel=1e-4)


def test_equal_teacher_maps_share_the_weight(inputs, context):
    """With one key for all, each teacher map counts as much as any other."""
    loss = semckd.build(semckd.Config(), context())
    given = inputs()
    with torch.no_grad():
        for part in loss.keys:
            part[2].weight.zero_()
            part[2].bias.fill_(1.0)
    before = loss(given)
    with torch.no_grad():
        for part in loss.queries:
            part[2].weight.neg_()
    torch.testing.assert_close(loss(given), before)


def test_width_bounds_the_regressors(context):
    narrow = semckd.build(semckd.Config(width=8), context())
    widths = [[part[3].in_channels for part in row] for row in narrow.regressors]
    assert widths == [[6, 8, 8]] * 3  # twice the teacher's 3, 7 and 9 channels, at most 8
