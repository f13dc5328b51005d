"""jacobian against finite differences of a small network's logits, its bounds and its refusals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from map_oracles import draw

from sweeper.losses import jacobian


def logits(images, weight):
    return np.tanh(images.reshape(len(images), -1) @ weight)


def closed_jacobian(images, weight, classes):
    """Gradient of tanh(x . w_k) with respect to x: (1 - tanh^2) w_k."""
    slopes = 1 - logits(images, weight) ** 2
    return np.stack([slopes[i, k] * weight[:, k] for i, k in enumerate(classes)]).reshape(images.shape)


def oracle(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = s.ravel() / math.sqrt((s**2).sum()), t.ravel() / math.sqrt((t**2).sum())
        total += sum((s - t) ** 2)
    return total / len(student)


@pytest.fixture
def network():
    """Images, weight of a student of one layer, classes and the teacher's Jacobian."""
    return draw(1, 3, 1, 2, 2), draw(2, 4, 5) / 2, [0, 3, 3], draw(3, 3, 1, 2, 2)


def test_jacobian_of_the_student(network, central_differences):
    images, weight, classes, _ = network
    leaf = torch.tensor(images, requires_grad=True)
    found = jacobian.student_jacobian(torch.tanh(leaf.flatten(1) @ torch.tensor(weight)), leaf, torch.tensor(classes))
    expected = central_differences(lambda x: sum(logits(x, weight)[i, k] for i, k in enumerate(classes)), images)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.detach(), closed_jacobian(images, weight, classes), rtol=1e-9)


def test_value_and_gradient_reach_the_weights(network, central_differences):
    images, weight, classes, teacher = network
    leaf, parameter = torch.tensor(images, requires_grad=True), torch.tensor(weight, requires_grad=True)
    student = jacobian.student_jacobian(torch.tanh(leaf.flatten(1) @ parameter), leaf, torch.tensor(classes))
    value = jacobian.jacobian_distance(student, torch.tensor(teacher))
    value.backward()
    assert value.item() == pytest.approx(oracle(closed_jacobian(images, weight, classes), teacher), rel=1e-9)
    slope = central_differences(lambda w: oracle(closed_jacobian(images, w, classes), teacher), weight)
    np.testing.assert_allclose(parameter.grad, slope, rtol=1e-5, atol=1e-8)


def test_bounds():
    maps = torch.tensor(draw(4, 2, 3, 2, 2))
    assert jacobian.jacobian_distance(maps, 7 * maps).item() == pytest.approx(0, abs=1e-15)
    assert jacobian.jacobian_distance(maps, -0.1 * maps).item() == pytest.approx(4)


def test_dead_jacobian_has_no_slope():
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    value = jacobian.jacobian_distance(dead, torch.rand(2, 3, 2, 2))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert torch.equal(dead.grad, torch.zeros(2, 3, 2, 2))


def test_module_takes_the_teachers_class(inputs, context):
    given = inputs(batch=4)
    weight = torch.tensor(draw(5, 108, 5) / 10, dtype=torch.float32)
    given = dataclasses.replace(given, student_logits_BK=torch.tanh(given.images_BCHW.flatten(1) @ weight))
    classes = given.teacher_logits_BK.argmax(dim=1).tolist()
    assert len(set(classes)) > 1
    student = closed_jacobian(given.images_BCHW.detach().double().numpy(), weight.double().numpy(), classes)
    expected = oracle(student, given.teacher_jacobian_BCHW.double().numpy())
    loss = jacobian.build(jacobian.Config(), context())
    assert loss(given).item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():  # the graph of the logits is what counts
        assert loss(given).item() == pytest.approx(expected, rel=1e-5)


def test_logits_without_a_graph_to_the_images_are_refused(inputs, context):
    loss = jacobian.build(jacobian.Config(), context())
    given = inputs()
    with pytest.raises(ValueError, match="computed from the images of its batch"):
        loss(given)
    detached = given.student_logits_BK.detach()
    for changes in ({"student_logits_BK": detached}, {"images_BCHW": given.images_BCHW.detach()}):
        with pytest.raises(ValueError, match="must not run under"):
            loss(dataclasses.replace(given, **changes))
    with pytest.raises(ValueError, match="needs the images"):
        loss(dataclasses.replace(given, images_BCHW=None))
