"""nst against a triple loop over channels in float64, by either Gram matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_oracles import draw, maps_of, same_size

from sweeper.errors import InputError
from sweeper.losses import MapShape, nst


def oracle(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = ([channel.ravel() / np.linalg.norm(channel) for channel in one_map] for one_map in (s, t))
        total += np.mean([sum(a * b) ** 2 for a in s for b in s])
        total += np.mean([sum(a * b) ** 2 for a in t for b in t])
        total -= 2 * np.mean([sum(a * b) ** 2 for a in s for b in t])
    return total / len(student)


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (3, 4)])  # 4, 16 and 144 products of pixels, 30 of channels
def test_value_and_gradient(size, central_differences):
    student, teacher = draw(1, 2, 5, *size), draw(2, 2, 6, *size)
    tensor = torch.tensor(student, requires_grad=True)
    value = nst.squared_mmd(tensor, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    slope = central_differences(lambda point: oracle(point, teacher), student)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    left, right = torch.zeros(2, 1, 3, 1, 4, dtype=torch.float64)
    left[..., 0], right[..., 2] = 2, -7
    assert nst.squared_mmd(left, right).item() == pytest.approx(2)  # the most there is
    both = torch.cat([left, right], dim=1)
    assert nst.squared_mmd(both, left).item() == pytest.approx(0.5)  # 1/2 + 1 - 2/2
    assert nst.squared_mmd(both, both.repeat(1, 2, 1, 1)).item() == pytest.approx(0, abs=1e-15)


def test_neither_scale_nor_order_of_channels_matters():
    student, teacher = torch.tensor(draw(1, 2, 5, 2, 3)), torch.tensor(draw(2, 2, 4, 2, 3))
    value = nst.squared_mmd(student, teacher)
    scales = torch.tensor([1.0, 5.0, 0.1, -2.0, 3.0]).reshape(5, 1, 1)
    for other in (scales * student, student.flip(1)):
        torch.testing.assert_close(nst.squared_mmd(other, teacher), value)


def test_dead_channel_has_no_slope():
    maps = torch.rand(2, 3, 2, 2)
    maps[:, 1] = 0
    maps.requires_grad_()
    nst.squared_mmd(maps, torch.rand(2, 3, 2, 2)).backward()
    assert (maps.grad[:, 1] == 0).all()
    assert (maps.grad[:, [0, 2]] != 0).all()


def test_module_sums_the_pairs_with_pixels(inputs, context):
    given = inputs()
    loss = nst.build(nst.Config(), context())
    expected = sum(oracle(*same_size(*pair)) for pair in maps_of(given))
    assert loss(given).item() == pytest.approx(expected, rel=1e-4)
    assert not list(loss.parameters())
    single = MapShape(6, 1, 1)
    known = context(student_maps=(*context().student_maps[:2], single))
    small = inputs(student_maps=(*given.student_maps[:2], torch.zeros(8, 6, 1, 1)))
    expected = sum(oracle(*same_size(*pair)) for pair in maps_of(small)[:2])
    assert nst.build(nst.Config(), known)(small).item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="nst compares where"):
        nst.check(nst.Config(), context(student_maps=(single,), teacher_maps=context().teacher_maps[:1]))
    nst.check(nst.Config(), known)
