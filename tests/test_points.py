"""Points that are tried first: what of them a space has, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from sweeper.points import distinct, flat, known_part
from sweeper.space import Space

SPACE = Space(
    {
        "teacher": {"choice": ["cnn", "none"]},
        "student": {"model": {"choice": [{"name": "a", "wide": 1}, {"name": "b"}]}, "init": "random"},
        "loss": {"kl": {"weight": {"uniform": [0, 2], "when": {"teacher": "cnn"}}}},
        "train": {"lr": {"loguniform": [1e-4, 1e-2]}, "epochs": 5},
    }
)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, {}),
        ({"teacher": "cnn", "loss": {"kl": {"weight": 1}}}, {"teacher": "cnn", "loss.kl.weight": 1}),
        ({"train.lr": 1e-3, "train": {"epochs": 5}}, {"train.lr": 1e-3}),
        ({"student": {"model": {"name": "b"}}}, {"student.model": {"name": "b"}}),
        ({"loss": {"kl": {"weight": 1}}}, {"loss.kl.weight": 1}),  # counts where the sampler draws cnn
    ],
)
def test_parts_of_points(tree: dict[str, Any], expected: dict[str, Any]) -> None:
    assert flat(SPACE, tree) == (expected, [])


@pytest.mark.parametrize(
    ("tree", "path", "fragment"),
    [
        ({"teachr": "cnn"}, "teachr", "is no leaf of the space under `trial:`; did you mean 'teacher'?"),
        ({"train": {"lr": 1.0}}, "train.lr", "needs loguniform 0.0001 to 0.01; given 1.0"),
        ({"teacher": "vit"}, "teacher", "needs choice of cnn, none; given 'vit'"),
        ({"train": {"epochs": 6}}, "train.epochs", "is the constant 5 in the space; given 6"),
        ({"student": {"model": {"name": "c"}}}, "student.model", "is not in the space"),
        ({"teacher": "none", "loss": {"kl": {"weight": 1}}}, "loss.kl.weight", "it is there when teacher is cnn"),
    ],
)
def test_what_is_wrong_is_said(tree: dict[str, Any], path: str, fragment: str) -> None:
    ((where, said),) = flat(SPACE, tree)[1]
    assert where == path
    assert fragment in said


def test_of_an_earlier_runs_configuration_what_fits_is_kept() -> None:
    earlier = {"teacher": "vit", "loss": {"kl": {"weight": 1.5}}, "train": {"lr": 1e-3, "epochs": 40}, "other": 1}
    assert known_part(SPACE, earlier) == {"loss.kl.weight": 1.5, "train.lr": 1e-3}


def test_equal_points_count_once_and_empty_ones_not_at_all() -> None:
    assert distinct([{"a": 1}, {}, {"b": 2}, {"a": 1}]) == [{"a": 1}, {"b": 2}]
