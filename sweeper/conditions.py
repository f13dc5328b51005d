"""Conditions between the leaves of a space: what is wrong with them, who comes first, which leaf counts.

All functions take the leaves as `dotted path -> Domain or constant`. A path may also point inside a leaf whose
options are mappings; the leaf that holds it is its owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sweeper.domain import MAX_VALUES, Domain, is_same, nearest

ABSENT = object()


def get_path(tree: Any, dotted: str, default: Any = None) -> Any:
    """The value at a dotted path of nested mappings, or `default` where the path ends early."""
    node = tree
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return default
        node = node[key]
    return node


def set_path(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put `value` at a dotted path of `tree`, in place, making the mappings on the way.

    Raises:
        ValueError: something on the way is a value and not a mapping.
    """
    *parents, last = dotted.split(".")
    node = tree
    for depth, key in enumerate(parents):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ValueError(f"{'.'.join(parents[: depth + 1])} is {node!r}, which has nothing below it")
    node[last] = value


def owner_of(path: str, leaves: Iterable[str]) -> str | None:
    """The leaf at `path`, or the one inside whose options it points."""
    return next((leaf for leaf in leaves if leaf == path or path.startswith(f"{leaf}.")), None)


def is_active(domain: Domain, chosen: Mapping[str, Any]) -> bool:
    """Whether every condition of `domain` holds among the values chosen so far (an inactive leaf has no value)."""

    def value_of(path: str) -> Any:
        owner = owner_of(path, chosen)
        if owner is None or owner == path:
            return chosen.get(path, ABSENT)
        return get_path(chosen[owner], path[len(owner) + 1 :], ABSENT)

    return all(any(is_same(value_of(path), value) for value in allowed) for path, allowed in domain.when)


def parents(leaf: Any, leaves: Mapping[str, Any]) -> list[str]:
    """The leaves that the conditions of `leaf` name."""
    if not isinstance(leaf, Domain):
        return []
    return [owner for name, _ in leaf.when if (owner := owner_of(name, leaves)) is not None]


def with_ancestors(paths: Iterable[str], leaves: Mapping[str, Any]) -> set[str]:
    """`paths` and all that their conditions name, and what the conditions of those name."""
    found: set[str] = set()
    stack = list(paths)
    while stack:
        if (path := stack.pop()) not in found:
            found.add(path)
            stack += parents(leaves[path], leaves)
    return found


def asked_of(paths: Iterable[str], leaves: Mapping[str, Any]) -> dict[str, Domain]:
    """For each leaf that the conditions of `paths` name, all that they ask of it together, as one domain's `when`."""
    asked: dict[str, Domain] = {}
    for path in paths:
        leaf = leaves[path]
        for name, allowed in leaf.when if isinstance(leaf, Domain) else ():
            if (owner := owner_of(name, leaves)) is not None:
                before = asked[owner].when if owner in asked else ()
                asked[owner] = Domain(kind="choice", when=(*before, (name, allowed)))
    return asked


def problems(leaves: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, sentence) for each condition on something that is unknown, continuous or never so."""
    for path, leaf in leaves.items():
        for name, allowed in leaf.when if isinstance(leaf, Domain) else ():
            owner = owner_of(name, leaves)
            below = [other for other in leaves if other.startswith(f"{name}.")]
            if owner == path:
                continue  # a circle, and said as such
            if owner is not None:
                yield from ((path, problem) for problem in _never_so(name, allowed, leaves[owner], owner))
            elif below:
                yield path, f"`when` names {name!r}, which is a section; name one of {', '.join(below)}"
            else:
                hint = nearest(name, leaves)
                yield path, f"`when` names {name!r}, which the file does not set under trial{hint}"


def _never_so(name: str, allowed: tuple[Any, ...], leaf: Any, owner: str) -> Iterator[str]:
    if leaf is ABSENT:  # malformed, and reported as such
        return
    if isinstance(leaf, Domain) and leaf.is_continuous:
        yield f"`when` names {name!r}, which is {leaf.describe()}: a continuous range never has an exact value"
        return
    if isinstance(leaf, Domain) and leaf.num_values > MAX_VALUES:
        yield f"`when` names {name!r}, which has {leaf.num_values:,} values, more than the {MAX_VALUES:,} allowed there"
        return
    rest = name[len(owner) + 1 :]
    options = leaf.options if isinstance(leaf, Domain) and leaf.kind == "choice" else (leaf,)
    if rest:
        options = tuple(get_path(option, rest, ABSENT) for option in options)
    for value in allowed:
        if any(o.contains(value) if isinstance(o, Domain) else is_same(o, value) for o in options):
            continue
        can_be = [o.describe() if isinstance(o, Domain) else str(o) for o in options if o is not ABSENT]
        yield (
            f"`when` asks for {name}: {value!r}, which it never is"
            f"{nearest(str(value), can_be)} (it can be: {', '.join(can_be) or 'nothing'})"
        )


def decision_order(leaves: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Leaves in the file's order, except that what a condition names comes before it; and the circles found."""
    order: list[str] = []
    circles: list[tuple[str, str]] = []
    done: set[str] = set()

    def visit(path: str, trail: tuple[str, ...]) -> None:
        if path in trail:
            circle = trail[trail.index(path) :]
            done.update(circle)
            circles.append((path, f"the conditions go round in a circle: {' needs '.join((*circle, path))}"))
        if path in done:
            return
        for parent in parents(leaves[path], leaves):
            visit(parent, (*trail, path))
        if path not in done:
            done.add(path)
            order.append(path)

    for path in leaves:
        visit(path, ())
    return order, circles
