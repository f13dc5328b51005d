"""at against loops over pixels in float64, its bounds and what it does not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_oracles import draw, maps_of, same_size

from sweeper.errors import InputError
from sweeper.losses import MapShape, at


def oracle_attention(one_map, p):
    channels, height, width = one_map.shape
    sums = [
        sum(abs(one_map[c, i, j]) ** p for c in range(channels)) / channels for i in range(height) for j in range(width)
    ]
    length = math.sqrt(sum(value**2 for value in sums))
    return [value / length for value in sums]


def oracle(student, teacher, p):
    squares = []
    for s, t in zip(student, teacher, strict=True):
        squares += [(a - b) ** 2 for a, b in zip(oracle_attention(s, p), oracle_attention(t, p), strict=True)]
    return np.mean(squares)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_value_and_gradient(p, central_differences):
    student, teacher = draw(1, 3, 4, 2, 3), draw(2, 3, 5, 2, 3)
    tensor = torch.tensor(student, requires_grad=True)
    value = at.attention_transfer(tensor, torch.tensor(teacher), p)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, p), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, p), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    left, right = torch.zeros(2, 1, 3, 1, 4, dtype=torch.float64)
    left[..., 0], right[..., 2] = 2, -7
    assert at.attention_transfer(left, right, 2.0).item() == pytest.approx(2 / 4)  # the most there is
    assert at.attention_transfer(left, -5 * left, 2.0).item() == pytest.approx(0, abs=1e-15)


def test_neither_scale_nor_sign_nor_order_of_channels_matters():
    student, teacher = (torch.tensor(draw(seed, 3, 4, 2, 3)) for seed in (1, 2))
    value = at.attention_transfer(student, teacher, 2.0)
    for other in (9 * student, -student, student.flip(1), student.repeat(1, 2, 1, 1)):
        torch.testing.assert_close(at.attention_transfer(other, teacher, 2.0), value)


def test_dead_map_has_no_slope():
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    at.attention_transfer(dead, torch.rand(2, 3, 2, 2), 1.0).backward()
    assert torch.equal(dead.grad, torch.zeros(2, 3, 2, 2))


def test_module_sums_the_pairs(inputs, context):
    loss = at.build(at.Config(p=3.0), context())
    given = inputs()
    expected = sum(oracle(*same_size(*pair), 3.0) for pair in maps_of(given))
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
    assert not list(loss.parameters())


def test_single_pixels_are_left_out(inputs, context):
    single = MapShape(6, 1, 1)
    known = context(student_maps=(*context().student_maps[:2], single))
    drawn = inputs()
    given = inputs(student_maps=(*drawn.student_maps[:2], torch.zeros(8, 6, 1, 1)))
    expected = sum(oracle(*same_size(*pair), 2.0) for pair in maps_of(given)[:2])
    assert at.build(at.Config(), known)(given).item() == pytest.approx(expected, rel=1e-5)
    nowhere = context(student_maps=(single,), teacher_maps=context().teacher_maps[:1])
    with pytest.raises(InputError, match="at compares where"):
        at.check(at.Config(), nowhere)
    at.check(at.Config(), known)
