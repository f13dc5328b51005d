"""reviewkd against numpy in float64: the hierarchical context, the fusion from deep to shallow, and the ramp."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from map_oracles import batch_normed, convolved, draw, maps_of, pooled, state_of

from sweeper.losses import reviewkd


def oracle_context(student, teacher):
    terms, weights = [np.mean((student - teacher) ** 2)], [1.0]
    for side in (4, 2, 1):
        if side < min(student.shape[2:]):
            terms.append(np.mean((pooled(student, (side, side)) - pooled(teacher, (side, side))) ** 2))
            weights.append(weights[-1] / 2)
    return np.average(terms, weights=weights)


def repeated(maps, size):
    """Nearest neighbour: pixel i of h comes from floor(i H / h)."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, maps.shape[2:], strict=True))
    return maps[:, :, rows][:, :, :, columns]


def oracle(state, levels):
    total, review = 0.0, None
    for i in reversed(range(len(levels))):
        student, teacher = levels[i]

        def normed(name, maps, i=i):
            weight, scale, shift = (state[f"{name}.{i}.{key}"] for key in ("0.weight", "1.weight", "1.bias"))
            return batch_normed(convolved(maps, weight), scale, shift)

        own = normed("inward", student)
        if review is not None:
            deeper = repeated(review, own.shape[2:])
            scores = convolved(np.concatenate([own, deeper], 1), state[f"gates.{i}.weight"], state[f"gates.{i}.bias"])
            gates = 1 / (1 + np.exp(-scores))
            own = own * gates[:, 0][:, None] + deeper * gates[:, 1][:, None]
        review = repeated(own, teacher.shape[2:])
        total += oracle_context(normed("outward", review), teacher)
    return total


def levels_of(given):
    pooled_level = (given.student_embedding_BD, given.teacher_embedding_BT)
    return [*maps_of(given), tuple(t.detach().double().numpy()[:, :, None, None] for t in pooled_level)]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (5, 6), (8, 8)])
def test_hierarchical_context(size, central_differences):
    student, teacher = draw(1, 2, 2, 2, *size)
    tensor = torch.tensor(student, requires_grad=True)
    value = reviewkd.hierarchical_context(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle_context(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle_context(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_hierarchical_context_pinned():
    zeros = torch.zeros(1, 1, 8, 8)
    assert reviewkd.hierarchical_context(zeros, zeros + 3).item() == pytest.approx(9)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    # every pooling of a checkerboard of -1 and 1 is 0; the weights add up to 15 / 8
    assert reviewkd.hierarchical_context(zeros, zeros + board).item() == pytest.approx(8 / 15)


@pytest.mark.parametrize("width", [2, 512])
def test_module(width, inputs, context):
    loss = reviewkd.build(reviewkd.Config(width=width, warmup=0), context())
    given, state = inputs(), state_of(loss)
    assert state["inward.0.0.weight"].shape == (min(width, 6), 4, 1, 1)
    with torch.no_grad():
        value = loss(given).item()
    assert value == pytest.approx(oracle(state, levels_of(given)), rel=1e-5)


def test_deep_maps_reach_every_level_and_shallow_ones_their_own(inputs, context):
    loss = reviewkd.build(reviewkd.Config(warmup=0), context())
    given = inputs()
    reviews = {}
    for i, head in enumerate(loss.outward):
        head.register_forward_hook(lambda _, __, output, i=i: reviews.__setitem__(i, output.detach()))

    def outputs(**changes):
        loss(dataclasses.replace(given, **changes))
        return dict(reviews)

    def differ(found):
        return [not torch.allclose(found[i], before[i]) for i in range(4)]

    before = outputs()
    first, second, third = given.student_maps
    assert differ(outputs(student_maps=(first.flip(0), second, third))) == [True, False, False, False]
    assert differ(outputs(student_maps=(first, second.flip(0), third))) == [True, True, False, False]
    assert differ(outputs(student_embedding_BD=given.student_embedding_BD.flip(0))) == [True] * 4


def test_order_of_the_batch_does_not_matter(inputs, context):
    loss = reviewkd.build(reviewkd.Config(warmup=0), context())
    given = inputs()
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled = dataclasses.replace(
        given,
        student_maps=tuple(m[order] for m in given.student_maps),
        teacher_maps=tuple(m[order] for m in given.teacher_maps),
        student_embedding_BD=given.student_embedding_BD[order],
        teacher_embedding_BT=given.teacher_embedding_BT[order],
    )
    torch.testing.assert_close(loss(shuffled), loss(given))


@pytest.mark.parametrize(
    ("warmup", "progress", "factor"), [(0.1, 0, 0), (0.1, 0.025, 0.25), (0.1, 0.1, 1), (0.1, 0.9, 1), (0, 0, 1)]
)
def test_ramp(warmup, progress, factor, context):
    loss = reviewkd.build(reviewkd.Config(warmup=warmup), context())
    assert loss.factor(progress) == pytest.approx(factor)
