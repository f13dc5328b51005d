"""What the losses on maps share: sizes against a loop over pixels, unit vectors without a slope at 0, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from map_oracles import draw
from map_oracles import pooled as oracle_pooled
from torch import nn

from sweeper.errors import InputError
from sweeper.losses import MapShape, _maps
from sweeper.losses._module import unit


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 7), (5, 7), (8, 11)])
def test_resized(size):
    maps = draw(0, 2, 3, 5, 7)
    np.testing.assert_allclose(_maps.resized(torch.tensor(maps), size), oracle_pooled(maps, size), rtol=1e-12)


def test_same_size_is_the_smaller_along_each_axis():
    student, teacher = torch.randn(2, 3, 4, 9), torch.randn(2, 5, 6, 2)
    found = _maps.same_size(student, teacher)
    assert [m.shape for m in found] == [(2, 3, 4, 2), (2, 5, 4, 2)]
    same = torch.randn(2, 5, 4, 9)
    assert _maps.same_size(student, same) == (student, same)


def test_unit(central_differences):
    rows, target = draw(1, 2, 4, 3)
    rows[2] = 0
    tensor = torch.tensor(rows, requires_grad=True)
    (unit(tensor, dim=1) * torch.tensor(target)).sum().backward()
    kept = [0, 1, 3]

    def oracle(point):
        return sum(np.dot(v, t) / math.sqrt(sum(v**2)) for v, t in zip(point, target[kept], strict=True))

    np.testing.assert_allclose(tensor.grad[kept], central_differences(oracle, rows[kept]), rtol=1e-5, atol=1e-8)
    assert torch.equal(unit(tensor, dim=1)[2], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(tensor.grad[2], torch.zeros(3, dtype=torch.float64))


def test_connectors_take_the_students_channels_to_the_teachers(context):
    known = context()
    plain, normed = _maps.connectors(known, norm=False), _maps.connectors(known, norm=True)
    for built, types in ((plain, [nn.Conv2d]), (normed, [nn.Conv2d, nn.BatchNorm2d])):
        assert [[type(layer) for layer in part] for part in built] == [types] * 3
        assert [(p[0].in_channels, p[0].out_channels) for p in built] == [(4, 3), (5, 7), (6, 9)]
    assert [part[0].bias is None for part in (plain[0], normed[0])] == [False, True]
    torch.manual_seed(0)
    wide = _maps.connector(50, 200, norm=True)[0].weight
    assert wide.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.05)


def test_spatial_pairs(context):
    single, row = MapShape(3, 1, 1), MapShape(3, 1, 4)
    known = context(student_maps=(row, row, single, row), teacher_maps=(row, MapShape(3, 4, 1), row, row))
    assert _maps.spatial_pairs(known, "at") == [0, 3]
    with pytest.raises(InputError, match=r"nst compares where .* have 1 x 1 and 1 x 4, 1 x 4 and 1 x 1; use larger"):
        _maps.spatial_pairs(context(student_maps=(single, row), teacher_maps=(row, single)), "nst")


def test_batch_without_pairs_is_refused(inputs):
    with pytest.raises(ValueError, match="holds 3 of the student and 0 of the teacher"):
        _maps.pairs(inputs(teacher_maps=()))
    with pytest.raises(ValueError, match="holds 0 of the student and 0 of the teacher"):
        _maps.pairs(inputs(student_maps=(), teacher_maps=()))
