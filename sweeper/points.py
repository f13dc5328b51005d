"""Points that are tried first: some leaves of a space with the values that they shall have; the sampler draws the rest.

They come from `search.points` in the file and from the fronts of earlier runs (`search.warm_start`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeper.conditions import ABSENT, get_path, is_active, owner_of
from sweeper.domain import Domain, is_same, nearest
from sweeper.space import Space

Point = Mapping[str, Any]  # dotted leaf -> value


def flat(space: Space, tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The leaves of `space` that a tree below `trial` (or dotted paths) gives, and what is wrong with it.

    Returns:
        the values of leaves that vary, and problems as (dotted path inside the tree, sentence).
    """
    given: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for path, value in _leaves(space, tree):
        leaf = space.leaves.get(path, ABSENT)
        if leaf is ABSENT:
            hint = nearest(path, space.leaves) or f" (it has {', '.join(space.domains) or 'no domain'})"
            problems.append((path, f"is no leaf of the space under `trial:`{hint}"))
        elif isinstance(leaf, Domain):
            if leaf.contains(value):
                given[path] = value
            else:
                problems.append((path, f"is not in the space: needs {leaf.describe()}; given {value!r}"))
        elif not is_same(leaf, value):
            problems.append((path, f"is the constant {leaf!r} in the space; given {value!r}"))
    known = {path: leaf for path, leaf in space.leaves.items() if not isinstance(leaf, Domain)} | given
    for path in given:
        domain = space.domains[path]
        if all(owner_of(name, known) for name, _ in domain.when) and not is_active(domain, known):
            when = domain.describe().partition(" when ")[2]
            problems.append((path, f"does not apply in this point: it is there when {when}"))
    return given, problems


def known_part(space: Space, tree: Mapping[str, Any]) -> dict[str, Any]:
    """What of an earlier run's resolved configuration `tree` stands in this space; the rest of it is left out."""
    found = {}
    for path, domain in space.domains.items():
        value = get_path(tree, path, ABSENT)
        if value is not ABSENT and domain.contains(value):
            found[path] = value
    return found


def distinct(points: Sequence[Point]) -> list[Point]:
    """Each point once, in order; empty ones say nothing."""
    found: list[Point] = []
    for point in points:
        if point and point not in found:
            found.append(point)
    return found


def _leaves(space: Space, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path not in space.leaves and isinstance(value, Mapping) and value:
            yield from _leaves(space, value, f"{path}.")
        else:
            yield path, value
