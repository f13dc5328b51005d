"""Spaces: conditions, and finite choices and corners against brute force over every draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from sweeper.space import Domain, InvalidSpace, Space, get_path, set_path


def every_draw(space: Space) -> Iterator[dict[str, Any]]:
    """All points of a finite space, by answering `suggest` in every way: an oracle for what can occur together."""
    scripts: list[list[Any]] = [[]]
    while scripts:
        script = scripts.pop()
        asked: list[Domain] = []

        def suggest(path: str, domain: Domain, script: list[Any] = script, asked: list[Domain] = asked) -> Any:
            asked.append(domain)
            return script[len(asked) - 1] if len(asked) <= len(script) else domain.values()[0]

        point = space.sample(suggest)
        if len(asked) == len(script):
            yield point
        else:
            scripts += [[*script, value] for value in asked[len(script)].values()]


def random_tree(seed: int) -> dict[str, Any]:
    """A tree of choices in which a leaf may depend on any leaf, before or after it in the file."""
    generator = random.Random(seed)
    names = ["a", "b", "s.c", "s.d", "s.t.e", "f"]
    generator.shuffle(names)
    leaves = {}
    for position, name in enumerate(names):
        leaf: dict[str, Any] = {"choice": list(range(generator.randint(1, 3)))}
        if position and generator.random() < 0.6:
            other = generator.choice(names[:position])
            options = leaves[other]["choice"]
            leaf["when"] = {other: generator.sample(options, generator.randint(1, len(options)))}
        leaves[name] = leaf
    tree: dict[str, Any] = {}
    for name in generator.sample(names, len(names)):
        set_path(tree, name, leaves[name])
    return tree


def is_possible(seed: int) -> bool:
    """Whether the random conditions do not contradict each other."""
    try:
        Space(random_tree(seed))
    except InvalidSpace:
        return False
    return True


POSSIBLE = [seed for seed in range(60) if is_possible(seed)]
CONDITIONAL = {
    "weight": {"uniform": [0, 2], "when": {"kind": ["kdep", "info"]}},
    "kind": {"choice": ["none", "kdep", "info"], "when": {"teacher": "big"}},
    "teacher": {"choice": ["none", "big"]},
    "lr": 0.1,
}


def test_conditions_are_decided_first_and_inactive_leaves_are_left_out() -> None:
    space = Space(CONDITIONAL)
    asked: list[str] = []

    def take_first(path: str, domain: Domain) -> Any:
        asked.append(path)
        return domain.options[0] if domain.options else domain.low

    assert space.sample(take_first) == {"teacher": "none", "lr": 0.1}
    assert asked == ["teacher"]
    asked.clear()

    def take_last(path: str, domain: Domain) -> Any:
        asked.append(path)
        return domain.options[-1] if domain.options else domain.high

    point = space.sample(take_last)
    assert point == {"weight": 2.0, "kind": "info", "teacher": "big", "lr": 0.1}
    assert list(point) == ["weight", "kind", "teacher", "lr"]  # as in the file
    assert asked == ["teacher", "kind", "weight"]


def test_a_conditional_constant_is_not_asked_for() -> None:
    space = Space({"a": {"choice": [1, 2]}, "b": {"value": 7, "when": {"a": 2}}, "c": {"choice": [3]}})
    assert space.leaves["c"] == 3
    assert list(every_draw(space)) == [{"a": 2, "b": 7, "c": 3}, {"a": 1, "c": 3}]


def test_a_drawn_value_is_snapped_so_that_conditions_on_it_hold() -> None:
    space = Space({"a": {"quniform": [0, 1, 0.1]}, "b": {"value": "on", "when": {"a": 0.3}}, "n": {"randint": [0, 3]}})
    point = space.sample(lambda path, domain: 0.1 + 0.2 if path == "a" else 2.0)
    assert point == {"a": 0.3, "b": "on", "n": 2}
    assert isinstance(point["n"], int)


def test_several_conditions_have_to_hold_together() -> None:
    space = Space({"a": {"choice": [0, 1]}, "b": {"choice": [0, 1]}, "c": {"choice": [5], "when": {"a": 1, "b": [1]}}})
    assert [point for point in every_draw(space) if "c" in point] == [{"a": 1, "b": 1, "c": 5}]


@pytest.mark.parametrize("seed", POSSIBLE)
def test_joint_finite_is_what_draws_can_show(seed: int) -> None:
    space = Space(random_tree(seed))
    paths = random.Random(seed).sample(list(space.leaves), 3)
    drawn = {
        repr({path: get_path(point, path) for path in paths if get_path(point, path) is not None})
        for point in every_draw(space)
    }
    found = [repr(combination) for combination in space.joint_finite(paths)]
    assert set(found) == drawn
    assert len(found) == len(drawn)


@pytest.mark.parametrize("seed", POSSIBLE)
def test_corners_are_points_and_show_every_option(seed: int) -> None:
    space = Space(random_tree(seed))
    corners = list(space.corners())
    points = [repr(point) for point in every_draw(space)]
    assert all(repr(corner) in points for corner in corners)
    for path, domain in space.domains.items():
        assert {get_path(corner, path) for corner in corners} >= set(domain.options)


def test_most_random_trees_are_possible() -> None:
    assert len(POSSIBLE) > 40


def test_corners_cross_a_kind_with_the_settings_beside_it() -> None:
    """What a setting may be depends on the kind: each end has to meet each kind that it can occur with."""
    space = Space({"e": {"kind": {"choice": ["none", "a", "b"]}, "w": {"uniform": [-1, 1]}}, "x": {"uniform": [0, 1]}})
    seen = {(corner["e"]["kind"], corner["e"]["w"]) for corner in space.corners()}
    assert seen >= {(kind, end) for kind in ("none", "a", "b") for end in (-1.0, 1.0)}
    assert {corner["x"] for corner in space.corners()} == {0.0, 0.5, 1.0}


def test_corners_are_few() -> None:
    space = Space({f"c{i}": {"choice": list(range(5))} for i in range(20)})
    assert len(list(space.corners())) == 1 + 20 * 4
    lists = Space({"s": {"a": {"choice": list(range(1000))}, "b": {"choice": list(range(1000))}}})
    assert len(list(lists.corners())) == 1 + 2 * 999


def test_finite() -> None:
    space = Space({"a": {"choice": [2, 1]}, "b": {"choice": ["x"], "when": {"a": 1}}, "c": 3, "u": {"uniform": [0, 1]}})
    assert space.finite("a") == (2, 1)
    assert space.finite("b", "default") == ("default", "x")
    assert space.finite("c") == (3,)
    assert space.finite("absent", 0) == (0,)
    with pytest.raises(ValueError, match="continuous"):
        space.finite("u")


def test_joint_finite_refuses_what_explodes_and_can_stand_in_for_ranges() -> None:
    space = Space({f"c{i}": {"choice": list(range(10))} for i in range(5)} | {"u": {"uniform": [0, 2]}})
    with pytest.raises(ValueError, match="more than"):
        space.joint_finite([f"c{i}" for i in range(5)])
    assert space.joint_finite(["u"], interior=True) == [{"u": 1.0}]


def test_mapping_options_are_opaque_and_can_be_asked_and_conditioned_inside() -> None:
    space = Space(
        {
            "student": {"choice": [{"model": "a"}, {"model": "b", "args": {"w": 2}}]},
            "lr": {"uniform": [0, 1], "when": {"student.model": "b"}},
        }
    )
    assert space.finite("student.model") == ("a", "b")
    assert space.finite("student.args.w", 1) == (1, 2)
    points = list(space.corners())
    assert {"student": {"model": "a"}} in points
    assert {"student": {"model": "b", "args": {"w": 2}}, "lr": 0.0} in points
    assert space.point_values(points[0]) == {"student": {"model": "a"}}


def test_tree_gives_the_short_form_back() -> None:
    space = Space({"a": {"values": [1, 2]}, "s": {"b": {"value": 1}, "c": {"min": 1, "max": 2, "when": {"a": 2}}}})
    tree = space.tree()
    assert tree == {"a": {"choice": [1, 2]}, "s": {"b": 1, "c": {"randint": [1, 3], "when": {"a": [2]}}}}
    assert Space(tree).leaves == space.leaves


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": {"choice": [1], "when": {"b": 1}}}, [("a", "'b', which the file does not set")]),
        ({"teacher": 1, "a": {"choice": [1], "when": {"teachr": 1}}}, [("a", "did you mean 'teacher'")]),
        ({"s": {"t": 1}, "a": {"choice": [1], "when": {"s": 1}}}, [("a", "a section; name one of s.t")]),
        ({"k": {"choice": ["kdep", "x"]}, "a": {"choice": [1], "when": {"k": "kdpe"}}}, [("a", "did you mean 'kdep'")]),
        ({"k": {"choice": [1]}, "a": {"choice": [1], "when": {"k": True}}}, [("a", "never is")]),
        ({"k": "on", "a": {"choice": [1], "when": {"k": "off"}}}, [("a", "never is")]),
        ({"k": {"randint": [0, 3]}, "a": {"choice": [1], "when": {"k": 3}}}, [("a", "never is")]),
        ({"u": {"uniform": [0, 1]}, "a": {"choice": [1], "when": {"u": 0.5}}}, [("a", "continuous")]),
        (
            {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}},
            [("a", "in a circle: a needs b needs a")],
        ),
        ({"a": {"choice": [1], "when": {"a": 1}}}, [("a", "in a circle: a needs a")]),
        (
            {
                "k": {"choice": [1, 2]},
                "a": {"choice": [1], "when": {"k": 1}},
                "b": {"choice": [1], "when": {"k": 2, "a": 1}},
            },
            [("b", "never be active")],
        ),
        ({"a": {"choice": []}, "b": {"unifrom": [0, 1]}}, [("a", "at least one"), ("b", "did you mean")]),
        ({"a.b": 1}, [("a.b", "not a plain name")]),
        ({"a": {1: 2}}, [("a.1", "not a plain name")]),
        ({"a": {"choice": []}, "b": {"choice": [1], "when": {"a": 1}}}, [("a", "at least one")]),
    ],
)
def test_collects_every_problem(tree: Any, expected: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidSpace) as caught:
        Space(tree)
    assert [path for path, _ in caught.value.problems] == [path for path, _ in expected]
    for (_, message), (_, fragment) in zip(caught.value.problems, expected, strict=True):
        assert fragment in message


def test_set_path_makes_the_way_and_refuses_to_go_through_values() -> None:
    tree: dict[str, Any] = {"a": 1}
    set_path(tree, "b.c.d", 2)
    assert tree == {"a": 1, "b": {"c": {"d": 2}}}
    with pytest.raises(ValueError, match="a is 1"):
        set_path(tree, "a.x", 2)
    assert get_path(tree, "b.c.d") == 2
    assert get_path(tree, "b.x.d", "absent") == "absent"
