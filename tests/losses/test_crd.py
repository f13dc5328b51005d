"""crd's estimate in loops in float64, its negatives by enumeration, and what its banks remember."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sweeper.errors import InputError
from sweeper.losses import Pool, crd

NUM_IMAGES, NUM_CLASSES = 30, 5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_pool(labels, hard, width=9):
    return Pool(
        logits_NK=None,
        embedding_NT=torch.zeros(len(labels), width),
        pre_embedding_NT=None,
        labels_N=torch.as_tensor(labels),
        hard_N=torch.as_tensor(hard, dtype=torch.bool),
    )


def known_pool(seed=0):
    rng = np.random.default_rng(seed)
    return make_pool(rng.integers(NUM_CLASSES, size=NUM_IMAGES), rng.random(NUM_IMAGES) < 0.7)


def oracle(scores, valid, z, num_images):
    """The authors' form, in probabilities, without their 1e-7."""
    noise = (scores.shape[1] - 1) / num_images
    total = 0.0
    for row, has_negatives in zip(np.exp(scores) / z, valid, strict=True):
        total -= math.log(row[0] / (row[0] + noise))
        if has_negatives:
            total -= sum(math.log(noise / (p + noise)) for p in row[1:])
    return total / len(scores)


@pytest.mark.parametrize("valid", [[True] * 4, [True, False, True, True]])
def test_value_and_gradient(valid, central_differences):
    scores = 3 * np.random.default_rng(1).standard_normal((4, 8))
    tensor = torch.tensor(scores, requires_grad=True)
    value = crd.nce(tensor, torch.tensor(valid), torch.tensor(math.log(70.0), dtype=torch.float64), 50)
    value.backward()
    assert value.item() == pytest.approx(oracle(scores, valid, 70.0, 50), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, valid, 70.0, 50), scores)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned_values():
    flat, everyone = torch.zeros(2, 5), torch.ones(2, dtype=torch.bool)
    # P = 1 / Z = the noise 4 / 8 for each column: every decision is even
    assert crd.nce(flat, everyone, torch.tensor(math.log(2)), 8).item() == pytest.approx(5 * math.log(2))
    extreme = torch.tensor([[2000.0, -2000.0]])
    assert crd.nce(extreme, everyone[:1], torch.tensor(0.0), 8).item() == 0
    assert crd.nce(-extreme, everyone[:1], torch.tensor(0.0), 8).item() == pytest.approx(4000, rel=1e-2)


def test_normalizer():
    scores = np.random.default_rng(2).standard_normal((3, 6))
    counted = np.ones((3, 6), dtype=bool)
    counted[1, 1:] = False
    found = crd.log_normalizer(torch.tensor(scores), torch.tensor([True, False, True]), 40)
    assert found.item() == pytest.approx(math.log(40 * np.exp(scores[counted]).mean()))
    assert crd.log_normalizer(torch.full((1, 2), 500.0), torch.tensor([True]), 1).item() == pytest.approx(500)


def allowed(pool, image, label):
    """Images that may be a negative; `label` is None where the batch's image has none to trust."""
    return [
        other
        for other in range(len(pool.labels_N))
        if other != image and not (label is not None and pool.hard_N[other] and pool.labels_N[other] == label)
    ]


def drawn_images(pool, image, label, draws):
    order = crd.class_order(pool, NUM_CLASSES)
    first, count = (order[name][label] if label is not None else torch.tensor(0) for name in ("first_K", "count_K"))
    own = order["place_N"][image]
    place, valid = crd.draw_negatives(draws[None], own[None], first[None], count[None], num_images=len(pool.labels_N))
    return order["order_N"][place[0]].tolist(), bool(valid[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("label", [None, *range(NUM_CLASSES)])
def test_negatives_are_the_allowed_images_equally_often(seed, label):
    """One draw from each of as many pieces as there are images: all of them once; of twice as many: twice."""
    pool = known_pool(seed)
    for image in range(NUM_IMAGES):
        expected = allowed(pool, image, label)
        for times in (1, 2):
            draws = torch.full((times * len(expected),), 0.5)
            found, valid = drawn_images(pool, image, label, draws)
            assert valid
            assert sorted(found) == sorted(expected * times)


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_edges_of_the_draws(edge):
    pool = known_pool()
    for image in range(NUM_IMAGES):
        found, _ = drawn_images(pool, image, 2, torch.full((7,), edge))
        assert set(found) <= set(allowed(pool, image, 2))
        assert len(set(found)) == 7


def test_each_image_is_as_likely():
    pool = known_pool()
    expected = allowed(pool, 4, 3)
    draws = torch.rand(4000, 7, generator=torch.Generator().manual_seed(0))
    order = crd.class_order(pool, NUM_CLASSES)
    own, first, count = order["place_N"][4], order["first_K"][3], order["count_K"][3]
    place, _ = crd.draw_negatives(draws, own.expand(4000), first.expand(4000), count.expand(4000), NUM_IMAGES)
    share = torch.bincount(order["order_N"][place].flatten(), minlength=NUM_IMAGES) / 4000
    assert (share[[i for i in range(NUM_IMAGES) if i not in expected]] == 0).all()
    torch.testing.assert_close(share[expected], torch.full((len(expected),), 7 / len(expected)), rtol=0, atol=0.04)


def test_one_class_leaves_no_negatives():
    pool = make_pool([1] * 4, [True] * 4)
    found, valid = drawn_images(pool, 2, 1, torch.rand(3))
    assert not valid
    assert set(found) <= set(range(4))


def build(context, pool, **config):
    settings = {"dim": 4, "negatives": 6, "tau": 0.5, "momentum": 0.3, **config}
    torch.manual_seed(0)
    return crd.build(crd.Config(**settings), context(pool=lambda: pool, num_samples=len(pool.labels_N)))


@pytest.fixture
def context(context):
    return lambda **changes: dataclasses.replace(context(), **changes)


def parts_of(loss, given):
    """Unit vectors of both sides and the banks, in float64."""
    state = {name: value.double().numpy().copy() for name, value in loss.state_dict().items()}
    sides = {"student": given.student_embedding_BD, "teacher": given.teacher_embedding_BT}
    vectors = {
        name: unit(
            rows.detach().double().numpy() @ state[f"{name}_projector.0.weight"].T + state[f"{name}_projector.0.bias"]
        )
        for name, rows in sides.items()
    }
    return vectors, {name: state[f"{name}_bank_NP"] for name in sides}


def expected_loss(loss, given, pool, tau, num_drawn, seed, log_z=None):
    """Value and both log Z: each side's vectors against the other side's bank."""
    vectors, banks = parts_of(loss, given)
    torch.manual_seed(seed)
    draws = torch.rand(len(given.index_B), num_drawn)
    total, normalizers = 0.0, {}
    for side, bank in (("student", "teacher"), ("teacher", "student")):
        scores = []
        for i, image in enumerate(given.index_B.tolist()):
            label = int(given.labels_B[i]) if given.hard_B[i] else None
            negatives, _ = drawn_images(pool, image, label, draws[i])
            assert set(negatives) <= set(allowed(pool, image, label))
            scores.append([float(vectors[side][i] @ banks[bank][j]) / tau for j in [image, *negatives]])
        scores = np.array(scores)
        z = NUM_IMAGES * np.exp(scores).mean() if log_z is None else math.exp(log_z[bank])
        normalizers[bank] = math.log(z)
        total += oracle(scores, [True] * len(scores), z, NUM_IMAGES)
    return total, normalizers


def make_batch(inputs, seed=0):
    return inputs(seed=seed, index_B=torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(seed))[:8])


def test_module_over_two_batches(inputs, context):
    """The first batch sets Z and moves the banks after its loss; the second one meets both."""
    pool = known_pool()
    loss = build(context, pool)
    log_z = None
    for seed in (1, 2):
        given = make_batch(inputs, seed)
        vectors, banks = parts_of(loss, given)
        expected, log_z = expected_loss(loss, given, pool, 0.5, 6, seed, log_z)
        torch.manual_seed(seed)
        value = loss(given)
        value.backward()
        assert value.item() == pytest.approx(expected, rel=1e-5)
        index = given.index_B.numpy()
        for side, bank in banks.items():
            assert loss.get_buffer(f"{side}_log_z").item() == pytest.approx(log_z[side], rel=1e-5)
            bank[index] = unit(0.3 * bank[index] + 0.7 * vectors[side])
            np.testing.assert_allclose(loss.get_buffer(f"{side}_bank_NP"), bank, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_module(inputs, context, central_differences):
    pool = known_pool()
    loss = build(context, pool)
    given = make_batch(inputs)
    loss(make_batch(inputs, seed=3))  # Z is a constant from here on
    loss.eval()
    log_z = {side: loss.get_buffer(f"{side}_log_z").item() for side in ("student", "teacher")}
    torch.manual_seed(4)
    loss(given).backward()

    def value(point):
        moved = dataclasses.replace(given, student_embedding_BD=torch.tensor(point))
        return expected_loss(loss, moved, pool, 0.5, 6, 4, log_z)[0]

    slope = central_differences(value, given.student_embedding_BD.detach().double().numpy())
    np.testing.assert_allclose(given.student_embedding_BD.grad, slope, rtol=1e-3, atol=1e-4)


def test_evaluation_leaves_no_trace(inputs, context):
    loss = build(context, known_pool()).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert loss(make_batch(inputs)).isfinite()
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_banks_begin_with_length_1_in_the_mean(context):
    pool = make_pool(np.zeros(500, dtype=int), np.zeros(500))
    loss = build(context, pool, dim=128)
    for side in ("student", "teacher"):
        bank = loss.get_buffer(f"{side}_bank_NP")
        assert bank.shape == (500, 128)
        assert bank.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(loss.get_buffer("student_bank_NP"), loss.get_buffer("teacher_bank_NP"))


@pytest.mark.parametrize(("negatives", "drawn"), [(16384, NUM_IMAGES - 1), (3, 3)])
def test_no_more_negatives_than_other_images(negatives, drawn, inputs, context, monkeypatch):
    shapes, draw = [], crd.draw_negatives

    def watched(draws_BJ, *rest):
        shapes.append(draws_BJ.shape)
        return draw(draws_BJ, *rest)

    monkeypatch.setattr(crd, "draw_negatives", watched)
    build(context, known_pool(), negatives=negatives)(make_batch(inputs))
    assert shapes == [(8, drawn)]


def test_pool_of_one_image_is_refused(context):
    with pytest.raises(InputError, match="the training pool has 1 image;"):
        build(context, make_pool([0], [True]))
