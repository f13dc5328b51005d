"""bingo against loops in float64, with bags from sklearn's exact neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from sweeper.errors import InputError
from sweeper.losses import bingo


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def oracle(anchors, positives, others, skip, tau):
    total = 0.0
    for i, (a, p) in enumerate(zip(anchors, positives, strict=True)):
        against = sum(math.exp(float(a @ (o - p)) / tau) for j, o in enumerate(others) if not skip[i, j])
        total += math.log(1 + against)
    return total / len(anchors)


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_value_and_gradient(tau, central_differences):
    anchors, positives, others = np.random.default_rng(1).standard_normal((3, 6, 5))
    skip = np.random.default_rng(2).random((6, 6)) < 0.4
    skip[0] = True
    tensor = torch.tensor(anchors, requires_grad=True)
    value = bingo.contrast(tensor, torch.tensor(positives), torch.tensor(others), torch.tensor(skip), tau)
    value.backward()
    assert value.item() == pytest.approx(oracle(anchors, positives, others, skip, tau), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, positives, others, skip, tau), anchors)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-4, atol=1e-7)


def test_pinned_values():
    axes, nobody = torch.eye(3), torch.zeros(3, 3, dtype=torch.bool)
    assert bingo.contrast(axes, axes, axes, torch.eye(3) > 0, 1.0).item() == pytest.approx(math.log(1 + 2 / math.e))
    assert bingo.contrast(axes, axes, axes, nobody, 1.0).item() == pytest.approx(math.log(2 + 2 / math.e))
    assert bingo.contrast(axes, axes, axes, ~nobody, 1.0).item() == 0


def test_bags_are_the_nearest_neighbours(context):
    pool = np.random.default_rng(3).standard_normal((60, 9)) + 1
    loss = bingo.build(bingo.Config(neighbours=4), context(pool=torch.tensor(pool)))
    fitted = NearestNeighbors(n_neighbors=5, metric="cosine").fit(pool)
    np.testing.assert_array_equal(loss.get_buffer("bags_NM"), fitted.kneighbors(pool, return_distance=False)[:, 1:])
    assert "bags_NM" in loss.state_dict()
    assert "pool_NT" not in loss.state_dict()


def test_both_terms_with_the_drawn_members(inputs, context):
    pool = np.random.default_rng(4).standard_normal((12, 9))
    config = bingo.Config(projector="linear", neighbours=3, tau=0.3, w_intra=0.7, w_inter=2.0)
    loss = bingo.build(config, context(pool=torch.tensor(pool, dtype=torch.float32)))
    index = np.array([3, 0, 11, 7, 4, 8, 1, 5])
    given = inputs(index_B=torch.tensor(index))
    state = {name: value.numpy() for name, value in loss.state_dict().items()}
    student = given.student_embedding_BD.detach().numpy() @ state["student_projector.0.weight"].T
    student = unit(student + state["student_projector.0.bias"])
    teacher = unit(given.teacher_embedding_BT.numpy())
    own = np.eye(8, dtype=bool)
    torch.manual_seed(5)
    member = np.take_along_axis(state["bags_NM"][index], torch.randint(3, (8, 1)).numpy(), axis=1)[:, 0]
    skip = own | (index == member[:, None])
    assert skip.sum() > 8  # a drawn member that is in the batch is not its own negative
    torch.manual_seed(5)
    intra, inter = loss.summands(given)
    assert intra.item() == pytest.approx(0.7 * oracle(student, teacher, teacher, own, 0.3), rel=1e-4)
    assert inter.item() == pytest.approx(2 * oracle(student, unit(pool[member]), teacher, skip, 0.3), rel=1e-4)


def test_every_member_is_drawn(inputs, context):
    loss = bingo.build(bingo.Config(neighbours=2), context())
    given = inputs()
    assert len({loss(given).item() for _ in range(20)}) > 1


def test_small_pools(inputs, context):
    loss = bingo.build(bingo.Config(), context(pool=torch.eye(9)[:2]))
    assert loss.get_buffer("bags_NM").tolist() == [[1], [0]]
    assert loss(inputs(batch=2, index_B=torch.tensor([1, 0]))).isfinite()
    with pytest.raises(InputError, match="the training pool has 1 image;"):
        bingo.build(bingo.Config(), context(pool=torch.eye(9)[:1]))
