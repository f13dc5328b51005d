"""The probe is scikit-learn's logistic regression, in one path over the penalties, chosen by validation alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from sweeper import probe


def clusters(num: int, num_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes with features of very different scales and offsets."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    features = rng.normal(size=(num, 4)) + 1.5 * np.eye(4)[labels]
    scaled = features * [1, 100, 0.01, 1] + [0, 1000, 0, -3]
    return torch.from_numpy(scaled), torch.from_numpy(labels)


@pytest.mark.parametrize("penalty", [0.01, 0.5, 50.0])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_probe_is_a_logistic_regression(num_classes: int, penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(60, num_classes, 0)
    val, val_labels = clusters(30, num_classes, 1)
    monkeypatch.setattr(probe, "PENALTIES", (penalty,))
    head = probe.fit(train, labels, val, val_labels)
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    # of two classes scikit-learn keeps one row of weights, the difference of ours, which costs half as much
    strength = penalty * (2 if num_classes == 2 else 1)
    oracle = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit((train - mean) / std, labels)
    with torch.no_grad():
        found = torch.softmax(head(val.float()), dim=1).numpy()
    assert found.shape == (30, num_classes)
    np.testing.assert_allclose(found, oracle.predict_proba((val - mean) / std), atol=1e-3)
    assert not head.weight.requires_grad


def probed(monkeypatch: pytest.MonkeyPatch, data: Any, *penalties: float) -> tuple[float, torch.Tensor]:
    """Cross-entropy on validation, by scikit-learn, and probabilities of the probe that these penalties give."""
    monkeypatch.setattr(probe, "PENALTIES", penalties)
    head = probe.fit(*data)
    probabilities = torch.softmax(head(data[2].float()), dim=1).detach().double()
    return log_loss(data[3], probabilities / probabilities.sum(dim=1, keepdim=True)), probabilities


@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_the_penalty_has_the_least_cross_entropy_on_validation(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with little noise, where each is right everywhere and accuracy could not tell them apart."""
    draw = np.random.default_rng(0)
    parts: list[torch.Tensor] = []
    for num in (30, 300):
        labels = np.arange(num) % 3
        parts += [torch.from_numpy(np.eye(4)[labels] + noise * draw.normal(size=(num, 4))), torch.from_numpy(labels)]
    alone = {penalty: probed(monkeypatch, parts, penalty) for penalty in (1e-4, 0.03, 1.0, 1000.0)}
    losses = sorted(loss for loss, _ in alone.values())
    assert all(more > 1.05 * less for less, more in itertools.pairwise(losses)), "the choice matters here"
    best = min(alone, key=lambda penalty: alone[penalty][0])
    for penalties in itertools.permutations(alone):
        # a fit that began at the end of another is the same to the solver's tolerance
        torch.testing.assert_close(probed(monkeypatch, parts, *penalties)[1], alone[best][1], rtol=0, atol=2e-3)


def test_penalties_beyond_the_best_one_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[float] = []
    minimise = probe._minimise

    def watched(*args: Any, decay: float) -> None:
        fitted.append(decay)
        minimise(*args, decay=decay)

    monkeypatch.setattr(probe, "_minimise", watched)
    draw = np.random.default_rng(0)
    labels = torch.arange(300) % 3
    features = torch.from_numpy(np.eye(4)[labels] + 2 * draw.normal(size=(300, 4)))
    probe.fit(features[:60], labels[:60], features[60:], labels[60:])
    assert fitted == sorted(fitted, reverse=True)
    assert len(fitted) < len(probe.PENALTIES)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    train, labels = clusters(60, 3, 0)
    val, val_labels = clusters(30, 3, 1)
    still = torch.cat([train, torch.full((60, 1), 7.0)], dim=1), torch.cat([val, torch.full((30, 1), 7.0)], dim=1)
    with torch.no_grad():
        found = probe.fit(still[0], labels, still[1], val_labels)(still[1].float())
        torch.testing.assert_close(found, probe.fit(train, labels, val, val_labels)(val.float()), rtol=1e-3, atol=1e-3)
