"""fsp against loops over channels in float64, its connectors and its refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_oracles import convolved, draw, maps_of, same_size, state_of
from torch import nn

from sweeper.errors import InputError
from sweeper.losses import fsp


def oracle_flow(bottom, top):
    bottom, top = same_size(bottom, top)
    flows = np.zeros((len(bottom), bottom.shape[1], top.shape[1]))
    for b, c, d in np.ndindex(flows.shape):
        flows[b, c, d] = sum(bottom[b, c].flat[x] * top[b, d].flat[x] for x in range(bottom[b, c].size))
    return flows / (bottom.shape[2] * bottom.shape[3])


def oracle(student_maps, teacher_maps):
    total = 0.0
    for i in range(len(student_maps) - 1):
        flows = [oracle_flow(maps[i], maps[i + 1]) for maps in (student_maps, teacher_maps)]
        total += np.mean((flows[0] - flows[1]) ** 2)
    return total


def test_value_and_gradient(central_differences):
    sizes = [(2, 2, 4, 3), (2, 3, 2, 3), (2, 4, 3, 1)]
    student = [draw(i, *size) for i, size in enumerate(sizes)]
    teacher = [draw(10 + i, size[0], size[1], 3, 3) for i, size in enumerate(sizes)]
    tensors = [torch.tensor(m, requires_grad=True) for m in student]
    value = fsp.flow_distance(tensors, [torch.tensor(m) for m in teacher])
    value.backward()
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-9)
    for i, tensor in enumerate(tensors):
        slope = central_differences(lambda p, i=i: oracle([*student[:i], p, *student[i + 1 :]], teacher), student[i])
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned():
    bottom = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]])
    top = torch.tensor([[[[3.0, 5.0]]]])
    torch.testing.assert_close(fsp.flow(bottom, top), torch.tensor([[[6.5], [10.0]]]))
    assert fsp.flow_distance([bottom, top], [bottom, top]).item() == 0
    assert fsp.flow_distance([bottom, top], [bottom, -top]).item() == pytest.approx((13**2 + 20**2) / 2)


def test_module_connects_the_students_channels(inputs, context):
    loss = fsp.build(fsp.Config(), context())
    given, state = inputs(), state_of(loss)
    student, teacher = zip(*maps_of(given), strict=True)
    connected = [convolved(m, state[f"connectors.{i}.weight"]) for i, m in enumerate(student)]
    assert loss(given).item() == pytest.approx(oracle(connected, teacher), rel=1e-5)


def test_equal_channels_are_compared_as_they_are(inputs, context):
    shapes = context().teacher_maps
    loss = fsp.build(fsp.Config(), context(student_maps=shapes))
    assert [type(part) for part in loss.connectors] == [nn.Identity] * 3
    given = inputs(student_maps=inputs().teacher_maps)
    assert loss(given).item() == 0


def test_one_map_is_refused(context):
    known = context()
    alone = context(student_maps=known.student_maps[:1], teacher_maps=known.teacher_maps[:1])
    for refused in (fsp.check, fsp.build):
        with pytest.raises(InputError, match="at least 2 pairs of maps, got 1; use a student"):
            refused(fsp.Config(), alone)
    fsp.check(fsp.Config(), known)
