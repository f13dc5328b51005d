"""vid against scipy's normal density in float64, for value, gradients and where the variance starts."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
import torch
from scipy.stats import norm

from sweeper.losses import vid

LEAST_VARIANCE = 1e-5


def variances_of(raw):
    return np.logaddexp(0, raw) + LEAST_VARIANCE


def oracle(mean, teacher, variances):
    return -np.mean(norm.logpdf(teacher, mean, np.sqrt(variances))) - math.log(2 * math.pi) / 2


@pytest.mark.parametrize("kind", ["linear", "mocov2"])
def test_value_and_gradients(kind, inputs, context, central_differences):
    loss = vid.build(vid.Config(projector=kind, initial_variance=0.3), context())
    with torch.no_grad():
        loss.get_parameter("raw_variance.0").copy_(torch.linspace(-3, 3, 9))
    state = {name: value.double().numpy().copy() for name, value in loss.state_dict().items()}

    def value_of(rows, raw):
        for layer in ["0"] if kind == "linear" else ["0", "2"]:
            weight, bias = (state[f"student_projector.{layer}.{name}"] for name in ("weight", "bias"))
            rows = np.maximum(rows, 0 if layer == "2" else -np.inf) @ weight.T + bias
        return oracle(rows, teacher, variances_of(raw))

    given = inputs()
    student, teacher = (
        tensor.detach().double().numpy() for tensor in (given.student_embedding_BD, given.teacher_embedding_BT)
    )
    raw = state["raw_variance.0"]
    squared, logarithm = loss.summands(given)
    value = squared + logarithm
    value.backward()
    assert value.item() == pytest.approx(value_of(student, raw), rel=1e-5)
    assert logarithm.item() == pytest.approx(np.mean(np.log(variances_of(raw))) / 2, rel=1e-4)
    for tensor, slope in [
        (given.student_embedding_BD, central_differences(lambda point: value_of(point, raw), student)),
        (loss.get_parameter("raw_variance.0"), central_differences(lambda point: value_of(student, point), raw)),
    ]:
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("initial", [0.001, 0.5, 5.0, 1000.0])
def test_variance_starts_where_it_is_told(initial, context):
    loss = vid.build(vid.Config(initial_variance=initial), context())
    raw = loss.get_parameter("raw_variance.0").detach().double().numpy()
    np.testing.assert_allclose(variances_of(raw), np.full(9, initial), rtol=1e-5)


def test_loss_is_least_where_the_variance_is_that_of_the_errors(inputs, context):
    loss = vid.build(vid.Config(projector="linear"), context())
    given = inputs(batch=64)
    errors = loss.student_projector(given.student_embedding_BD).detach() - given.teacher_embedding_BT
    best = torch.log(torch.expm1(errors.square().mean(dim=0) - LEAST_VARIANCE))
    with torch.no_grad():
        loss.get_parameter("raw_variance.0").copy_(best)
    loss(given).backward()
    torch.testing.assert_close(loss.get_parameter("raw_variance.0").grad, torch.zeros(9), rtol=0, atol=1e-5)


@pytest.mark.parametrize("initial", [0.0, -1.0, 1e4])
def test_variance_out_of_range_is_refused(initial):
    with pytest.raises(pydantic.ValidationError, match="initial_variance"):
        vid.Config(initial_variance=initial)
