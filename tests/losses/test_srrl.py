"""srrl against loops in float64, and its two connectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sweeper.losses import srrl


def oracle(connected, embedding, weight, bias, logits):
    feature = np.mean([(c - e) ** 2 for c, e in zip(connected.ravel(), embedding.ravel(), strict=True)])
    passed = [[float(row @ w) + b for w, b in zip(weight, bias, strict=True)] for row in connected]
    return feature, np.mean((np.array(passed) - logits) ** 2)


def test_value_and_gradient(central_differences):
    rng = np.random.default_rng(1)
    connected, embedding = rng.standard_normal((2, 6, 5))
    weight, bias, logits = rng.standard_normal((4, 5)), rng.standard_normal(4), rng.standard_normal((6, 4))
    tensor = torch.tensor(connected, requires_grad=True)
    terms = srrl.srrl(tensor, *map(torch.tensor, (embedding, weight, bias, logits)))
    sum(terms).backward()
    assert [term.item() for term in terms] == pytest.approx(oracle(connected, embedding, weight, bias, logits))
    slope = central_differences(lambda point: sum(oracle(point, embedding, weight, bias, logits)), connected)
    np.testing.assert_allclose(tensor.grad, slope, rtol=1e-5, atol=1e-8)


def test_pinned_values():
    axes, ones = torch.eye(2), torch.ones(2)
    assert [t.item() for t in srrl.srrl(axes, axes, 2 * axes, ones, 2 * axes + 1)] == [0, 0]
    assert [t.item() for t in srrl.srrl(axes, -axes, axes, ones, axes)] == [2, 1]


def test_module_is_the_weighted_sum(inputs, context):
    known = context()
    loss = srrl.build(srrl.Config(w_feature=3.0, w_logit=0.5), known)
    given = inputs()
    state = {name: value.double().numpy() for name, value in loss.state_dict().items()}
    connected = given.student_embedding_BD.detach().double().numpy() @ state["connector.0.weight"].T
    connected = connected + state["connector.0.bias"]
    weight, bias = (tensor.double().numpy() for tensor in known.classifier())
    teacher = (given.teacher_embedding_BT.double().numpy(), weight, bias, given.teacher_logits_BK.double().numpy())
    feature, logit = oracle(connected, *teacher)
    assert loss(given).item() == pytest.approx(3 * feature + 0.5 * logit, rel=1e-5)
    assert {name for name, _ in loss.named_parameters()} == {"connector.0.weight", "connector.0.bias"}


def test_the_papers_connector(inputs, context):
    loss = srrl.build(srrl.Config(connector="norm_relu"), context())
    connector = loss.get_submodule("connector")
    assert [type(layer) for layer in connector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert connector[0].bias is None
    assert (connector(torch.randn(8, 6, generator=torch.Generator().manual_seed(0))) >= 0).all()
    value = loss(inputs())
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.abs().max() > 0 for parameter in loss.parameters())


def test_classifier_is_a_copy(inputs, context):
    weight, bias = torch.ones(5, 9, dtype=torch.float16), torch.zeros(5)
    loss = srrl.build(srrl.Config(), context(classifier=lambda: (weight, bias)))
    loss.get_buffer("bias_K").add_(1)
    assert torch.equal(bias, torch.zeros(5))
    assert loss.get_buffer("weight_KT").dtype == torch.float32
