"""Domains: the two ways of writing them, what they contain, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sweeper.domain import Domain
from sweeper.space import parse_domain


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"choice": ["a", {"b": 1}]}, Domain(kind="choice", options=("a", {"b": 1}))),
        ({"uniform": [0, 1]}, Domain(kind="uniform", low=0.0, high=1.0)),
        ({"loguniform": ["1e-4", 0.01]}, Domain(kind="loguniform", low=1e-4, high=1e-2)),
        ({"randint": [1, 4]}, Domain(kind="randint", low=1, high=4)),
        ({"quniform": [0.1, 0.5, 0.1]}, Domain(kind="quniform", low=0.1, high=0.5, q=0.1)),
        ({"values": [1, 2]}, Domain(kind="choice", options=(1, 2))),
        ({"value": 3}, Domain(kind="choice", options=(3,))),
        ({"min": 1, "max": 3}, Domain(kind="randint", low=1, high=4)),
        ({"min": 1.0, "max": 3}, Domain(kind="uniform", low=1.0, high=3.0)),
        ({"distribution": "int_uniform", "min": 1, "max": 3}, Domain(kind="randint", low=1, high=4)),
        ({"distribution": "q_uniform", "min": 0, "max": 6, "q": 2}, Domain(kind="quniform", low=0.0, high=6.0, q=2.0)),
        ({"distribution": "q_uniform", "min": 0, "max": 6}, Domain(kind="quniform", low=0.0, high=6.0, q=1.0)),
        ({"distribution": "categorical", "values": ["x"]}, Domain(kind="choice", options=("x",))),
        ({"distribution": "constant", "value": "x"}, Domain(kind="choice", options=("x",))),
        (
            {"distribution": "log_uniform_values", "min": 1e-4, "max": 1},
            Domain(kind="loguniform", low=1e-4, high=1.0),
        ),
        (
            {"choice": [1], "when": {"trial.a.b": "x", "c": [1, 2]}},
            Domain(kind="choice", options=(1,), when=(("a.b", ("x",)), ("c", (1, 2)))),
        ),
    ],
)
def test_reads_the_short_and_the_wandb_form(written: Any, expected: Domain) -> None:
    assert parse_domain(written) == expected
    assert parse_domain(expected.as_tree()) == expected


@pytest.mark.parametrize(
    "constant", [1, "a", None, [1, 2], {}, {"model": "a", "init": "b"}, {"drop": 0.1}, {"sizes": [1]}]
)
def test_constants_and_sections_are_no_domains(constant: Any) -> None:
    assert parse_domain(constant) is None


@pytest.mark.parametrize(
    ("written", "fragment"),
    [
        ({"choice": []}, "at least one option"),
        ({"choice": "cnn"}, "needs a list"),
        ({"choice": [1, 1.0]}, "twice"),
        ({"choice": [{"lr": {"uniform": [0, 1]}}]}, "holds a domain"),
        ({"uniform": [1, 0]}, "low < high"),
        ({"uniform": [1, 1]}, "low < high"),
        ({"uniform": [0]}, "list [low, high]"),
        ({"uniform": [0, math.inf]}, "finite"),
        ({"uniform": [False, 1]}, "finite number; given False"),
        ({"uniform": ["a", 1]}, "uniform's low has to be a number"),
        ({"loguniform": [0, 1]}, "low > 0"),
        ({"randint": [0, 1.5]}, "whole number"),
        ({"quniform": [0, 1, 0]}, "q > 0"),
        ({"quniform": [0, 1, 0.3]}, "the nearest is 0.9"),
        ({"uniform": [0, 1], "wen": {"a": 1}}, "did you mean 'when'"),
        ({"uniform": [0, 1], "choice": [1]}, "beside it"),
        ({"unifrom": [0, 1]}, "did you mean 'uniform'"),
        ({"qloguniform": [1, 2, 1]}, "did you mean 'loguniform'"),
        ({"kind": "a", "when": {"b": 1}}, "`when` needs a domain"),
        ({"choice": [1], "when": "b"}, "needs a mapping"),
        ({"choice": [1], "when": {}}, "needs a mapping"),
        ({"choice": [1], "when": {"b": []}}, "at least one value"),
        ({"distribution": "log_uniform", "min": -4, "max": 0}, "log_uniform_values"),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "is not read"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "did you mean 'uniform'"),
        ({"distribution": "uniform", "min": 0}, "lacks max"),
        ({"min": 0, "max": 1, "q": 2}, "has q beside it"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "has probabilities beside it"),
    ],
)
def test_refuses_malformed_domains_with_the_reason(written: Any, fragment: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the fragment is what is looked for
        parse_domain(written)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        ({"choice": [1, "a", True]}, [1, 1.0, "a", True], [0, "b", None, False]),
        ({"choice": [1]}, [1], [True]),
        ({"uniform": [0, 1]}, [0, 0.5, 1], [-0.1, 1.1, "0.5", True, math.nan]),
        ({"loguniform": [0.1, 10]}, [0.1, 10], [0, 11]),
        ({"randint": [1, 3]}, [1, 2, 2.0], [0, 3, 1.5]),
        ({"quniform": [0, 1, 0.1]}, [0, 0.3, 3 * 0.1, 1.0], [0.25, 1.1, -0.1]),
    ],
)
def test_contains(domain: Any, inside: list[Any], outside: list[Any]) -> None:
    parsed = parse_domain(domain)
    assert parsed is not None
    assert all(parsed.contains(value) for value in inside)
    assert not any(parsed.contains(value) for value in outside)


@pytest.mark.parametrize(
    ("domain", "ends", "middle"),
    [
        ({"choice": ["a", "b", "c"]}, ("a", "b", "c"), "a"),
        ({"uniform": [1, 3]}, (1.0, 3.0), 2.0),
        ({"loguniform": [0.01, 1]}, (0.01, 1.0), 0.1),
        ({"randint": [2, 5]}, (2, 4), 2),
        ({"randint": [2, 3]}, (2,), 2),
        ({"quniform": [0.2, 0.6, 0.2]}, (0.2, 0.6), 0.2),
    ],
)
def test_representatives_can_be_drawn(domain: Any, ends: tuple[Any, ...], middle: Any) -> None:
    parsed = parse_domain(domain)
    assert parsed is not None
    assert parsed.representatives() == ends
    assert parsed.interior() == pytest.approx(middle) if isinstance(middle, float) else parsed.interior() == middle
    assert all(parsed.contains(value) for value in (*ends, parsed.interior()))


def test_values_lists_finite_domains_without_binary_dust() -> None:
    assert Domain(kind="randint", low=1, high=4).values() == (1, 2, 3)
    assert Domain(kind="quniform", low=0.1, high=0.4, q=0.1).values() == (0.1, 0.2, 0.3, 0.4)
    with pytest.raises(ValueError, match="continuous"):
        Domain(kind="uniform", low=0, high=1).values()
    with pytest.raises(ValueError, match="more than"):
        Domain(kind="randint", low=0, high=10**9).values()


def test_describe_says_everything() -> None:
    domain = parse_domain({"randint": [1, 5], "when": {"a": ["x", "y"]}})
    assert domain is not None
    assert domain.describe() == "randint 1 to 5 (excluded) when a is x or y"


@pytest.mark.parametrize(
    "written",
    [
        {"choice": ["a", None, 3]},
        {"uniform": [-1, 2]},
        {"loguniform": [1e-4, 1e-1]},
        {"randint": [2, 5]},
        {"quniform": [0.1, 0.5, 0.1]},
    ],
)
def test_quantiles_are_values_in_order_and_equally_many(written: Any) -> None:
    domain = parse_domain(written)
    assert domain is not None
    found = [domain.at(i / 600) for i in range(600)]
    assert all(domain.contains(value) for value in found)
    assert domain.contains(domain.at(1 - 1e-12))
    if domain.is_continuous:
        middle = math.sqrt(1e-5) if domain.kind == "loguniform" else 0.5
        assert domain.at(0.5) == pytest.approx(middle)
        assert found == sorted(found)
    else:
        assert tuple(dict.fromkeys(found)) == domain.values()
        assert {found.count(value) for value in domain.values()} == {600 // len(domain.values())}
