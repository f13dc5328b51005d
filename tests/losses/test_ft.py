"""ft against loops over pixels in float64, and which pair it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_oracles import draw, maps_of, same_size

from sweeper.errors import InputError
from sweeper.losses import MapShape, ft


def oracle_factor(one_map, p):
    powers = [np.mean([abs(value) ** p for value in pixel]) for pixel in one_map.reshape(len(one_map), -1).T]
    return [value / math.sqrt(sum(other**2 for other in powers)) for value in powers]


def oracle(student, teacher, p, distance):
    terms = []
    for s, t in zip(student, teacher, strict=True):
        terms += [abs(a - b) ** distance for a, b in zip(oracle_factor(s, p), oracle_factor(t, p), strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("p", "distance"), [(2.0, 1.0), (1.0, 2.0), (3.0, 1.5)])
def test_value_and_gradient(p, distance, central_differences):
    student, teacher = draw(3, 3, 4, 2, 3), draw(4, 3, 5, 2, 3)
    tensor = torch.tensor(student, requires_grad=True)
    value = ft.factor_transfer(tensor, torch.tensor(teacher), p, distance)
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher, p, distance), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher, p, distance), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    left, right = torch.zeros(2, 1, 3, 1, 4, dtype=torch.float64)
    left[..., 0], right[..., 2] = 2, -7
    assert ft.factor_transfer(left, right, 2.0, 1.0).item() == pytest.approx(2 / 4)
    assert ft.factor_transfer(left, -5 * left, 2.0, 1.0).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("distance", [1.0, 1.5])
def test_equal_factors_have_no_slope(distance):
    maps = torch.rand(2, 3, 2, 2, requires_grad=True)
    ft.factor_transfer(maps, maps.detach(), 2.0, distance).backward()
    assert torch.equal(maps.grad, torch.zeros(2, 3, 2, 2))


def test_module_reads_the_deepest_pair_with_pixels(inputs, context):
    given = inputs()
    loss = ft.build(ft.Config(), context())
    assert loss(given).item() == pytest.approx(oracle(*same_size(*maps_of(given)[2]), 2.0, 1.0), rel=1e-5)
    assert not list(loss.parameters())
    single = MapShape(6, 1, 1)
    known = context(student_maps=(*context().student_maps[:2], single))
    small = inputs(student_maps=(*given.student_maps[:2], torch.zeros(8, 6, 1, 1)))
    expected = oracle(*same_size(*maps_of(small)[1]), 2.0, 1.0)
    assert ft.build(ft.Config(), known)(small).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="ft compares where"):
        ft.check(ft.Config(), context(student_maps=(single,), teacher_maps=context().teacher_maps[:1]))
    ft.check(ft.Config(), known)
