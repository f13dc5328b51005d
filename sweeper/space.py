"""The search space: domains, conditions between them, and what follows from them without drawing anything.

A leaf of the `trial:` tree is a constant or a domain, named as in `ray.tune`, with `when:` if it depends on another
leaf. The search draws points (`Space.sample`), the plan lists what has to be built (`Space.joint_finite`), the reader
of the file tries every branch (`Space.corners`). Conditions are decided before what depends on them, so that a
sampler only ever sees leaves that count. W&B's sweep form is read into the same domains.

Plain Python on purpose: Optuna and Ray Tune each get these domains translated where they live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweeper import conditions
from sweeper.conditions import ABSENT, get_path, is_active, set_path
from sweeper.domain import Domain, is_same
from sweeper.domain_forms import parse_domain
from sweeper.errors import InputError

__all__ = ["Domain", "InvalidSpace", "Space", "TooManyCombinations", "get_path", "nested", "parse_domain", "set_path"]

MAX_COMBINATIONS = 10_000
MAX_CORNERS = 10_000
MAX_LEAVES = 300
MAX_PAIRED = 50  # a `kind` has fewer options; two long lists side by side would make a million corners


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as the tree that they name."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        set_path(tree, path, value)
    return tree


class TooManyCombinations(InputError, ValueError):
    """Some leaves have more values together than can be gone through one by one."""


class InvalidSpace(ValueError):
    """Every problem of a `trial:` tree as (dotted path, sentence), in the order of the tree."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {message}" for path, message in problems))


class Space:
    """The `trial:` tree, read once: `leaves` maps each dotted path to its `Domain` or constant, in the file's order.

    A mapping given as an option of a `choice` is one opaque value, whose inside can still be asked for by path.

    Raises:
        InvalidSpace: malformed domains, conditions on unknown paths or impossible values, conditions in a circle,
            leaves that can never be active, choices side by side that make too many corners.
        TooManyCombinations: more than `MAX_LEAVES`.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.leaves: dict[str, Any] = {}
        problems: list[tuple[str, str]] = []
        self._read(tree, "", problems)
        if len(self.leaves) > MAX_LEAVES:
            raise TooManyCombinations(f"has {len(self.leaves)} leaves, more than {MAX_LEAVES}")
        problems += conditions.problems(self.leaves)
        self._order, circles = conditions.decision_order(self.leaves)
        self._named = {name for leaf in self.domains.values() for name, _ in leaf.when}
        problems += circles
        if not problems:
            problems += self._too_many_corners()
        if not problems:
            problems += [
                (path, "can never be active: its conditions contradict each other or those of what they name")
                for path, domain in self.domains.items()
                if domain.when and next(self._assignments([path], must=[path]), None) is None
            ]
        if problems:
            raise InvalidSpace(problems)

    @property
    def domains(self) -> dict[str, Domain]:
        """The leaves that vary or depend on others."""
        return {path: leaf for path, leaf in self.leaves.items() if isinstance(leaf, Domain)}

    def tree(self) -> dict[str, Any]:
        """The `trial:` tree again, with every domain in the short form."""
        return self._point({p: leaf.as_tree() if isinstance(leaf, Domain) else leaf for p, leaf in self.leaves.items()})

    def sample(self, suggest: Callable[[str, Domain], Any]) -> dict[str, Any]:
        """Draw one point as a nested mapping; inactive leaves are left out, so that the model's default holds.

        Args:
            suggest: called with (dotted path, domain) for each active domain that has more than one value, after
                everything that its conditions name; returns the value.
        """
        chosen: dict[str, Any] = {}
        for path in self._order:
            leaf = self.leaves[path]
            if not isinstance(leaf, Domain):
                chosen[path] = leaf
            elif is_active(leaf, chosen):
                chosen[path] = leaf.options[0] if len(leaf.options) == 1 else leaf.snap(suggest(path, leaf))
        return self._point(chosen)

    def finite(self, path: str, default: Any = None) -> tuple[Any, ...]:
        """Every value that `path` can have in a point, `default` standing for points that lack it.

        Raises:
            ValueError: the domain there is continuous, or has more than `MAX_COMBINATIONS` values.
        """
        values: list[Any] = []
        for combination in self.joint_finite([path]):
            value = combination.get(path, default)
            if not any(is_same(value, other) for other in values):
                values.append(value)
        return tuple(values)

    def joint_finite(self, paths: Sequence[str], *, interior: bool = False) -> list[dict[str, Any]]:
        """The distinct combinations of values at `paths` that can occur together, `when` honoured.

        A combination lacks the paths that are inactive in it or not in the file.

        Args:
            paths: leaves, or paths inside a leaf whose options are mappings, or whole sections.
            interior: let a continuous domain stand as one value inside its bounds instead of raising.

        Raises:
            ValueError: a domain is continuous.
            TooManyCombinations: they are more than `MAX_COMBINATIONS`.
        """
        wanted = [leaf for path in paths for leaf in self._leaves_at(path)]
        seen: dict[str, dict[str, Any]] = {}
        for count, assignment in enumerate(self._assignments(wanted, interior=interior)):
            if count >= MAX_COMBINATIONS:
                raise TooManyCombinations(
                    f"{', '.join(paths)}: more than {MAX_COMBINATIONS:,} combinations; shorten their choices"
                )
            point = self._point(assignment)
            found = {path: value for path in paths if (value := get_path(point, path, ABSENT)) is not ABSENT}
            seen.setdefault(repr(found), found)
        return list(seen.values())

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points that exercise every branch: each option of a choice and each end of a range is active in one at least.

        One leaf at a time leaves a base point (first options, middles of continuous ranges), with its conditions made
        true. Besides, each option of a choice meets each value of the leaves beside and below it, because what is
        allowed in a section depends on its `kind`. Not the full product.
        """
        seen: set[str] = set()
        for fixed in self._variations():
            assignment = next(self._assignments(fixed, must=list(fixed), fixed=fixed), None)
            if assignment is None:  # a pair that can not occur together
                continue
            for path in self._order:
                leaf = self.leaves[path]
                if path in assignment or (isinstance(leaf, Domain) and not is_active(leaf, assignment)):
                    continue
                assignment[path] = leaf.interior() if isinstance(leaf, Domain) else leaf
            point = self._point(assignment)
            if (key := repr(point)) not in seen:
                seen.add(key)
                yield point

    def point_values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point flattened: dotted leaf -> value, without the leaves that the point leaves out."""
        values = {path: get_path(point, path, ABSENT) for path in self.leaves}
        return {path: value for path, value in values.items() if value is not ABSENT}

    def _read(self, node: Mapping[Any, Any], prefix: str, problems: list[tuple[str, str]]) -> None:
        for key, value in node.items():
            path = f"{prefix}{key}"
            if not isinstance(key, str) or not key or "." in key:
                problems.append((path, f"the key {key!r} is not a plain name; write one level of nesting for each dot"))
                continue
            try:
                domain = parse_domain(value)
            except ValueError as error:
                problems.append((path, str(error)))
                self.leaves[path] = ABSENT  # so that conditions on it are not reported as well
                continue
            if domain is not None:
                is_constant = not domain.when and len(domain.options) == 1
                self.leaves[path] = domain.options[0] if is_constant else domain
            elif isinstance(value, Mapping) and value:
                self._read(value, f"{path}.", problems)
            else:
                self.leaves[path] = value

    def _leaves_at(self, path: str) -> list[str]:
        """The leaf at `path`, or the one that holds it inside an option, or all below it."""
        return [
            leaf for leaf in self.leaves if leaf == path or path.startswith(f"{leaf}.") or leaf.startswith(f"{path}.")
        ]

    def _assignments(
        self,
        targets: Iterable[str],
        *,
        must: Sequence[str] = (),
        fixed: Mapping[str, Any] | None = None,
        interior: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Every assignment of `targets` and of what their conditions reach; those in `must` have to be active.

        `fixed` are values given beforehand; leaves in `must` without one stand as one value, whichever. What a leaf
        in `must` depends on has to be active as well, with a value that it asks for: nothing else is tried, so that
        the search for one assignment has no dead end however many choices there are.
        """
        needed = conditions.with_ancestors(targets, self.leaves)
        order = [path for path in self._order if path in needed]
        given = dict(fixed or {})
        asked = conditions.asked_of(conditions.with_ancestors(must, self.leaves), self.leaves)

        def values(path: str, leaf: Any) -> Sequence[Any]:
            if path in given:
                return (given[path],)
            if not isinstance(leaf, Domain):
                return (leaf,)
            if leaf.is_continuous and (interior or path in must):
                return (leaf.interior(),)
            # a long range of whole numbers, too; where conditions name it, each of its values counts
            if interior and leaf.kind != "choice" and path not in self._named:
                return leaf.representatives()
            return leaf.values()

        allowed = {
            path: [value for value in values(path, self.leaves[path]) if is_active(wanted, {path: value})]
            for path, wanted in asked.items()
        }
        if not all(allowed.values()):
            return

        def extend(position: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if position == len(order):
                yield dict(chosen)
                return
            path = order[position]
            leaf = self.leaves[path]
            if isinstance(leaf, Domain) and not is_active(leaf, chosen):
                if path not in must:
                    yield from extend(position + 1, chosen)
                return
            for value in allowed[path] if path in allowed else values(path, leaf):
                yield from extend(position + 1, {**chosen, path: value})

        yield from extend(0, {})

    def _variations(self) -> Iterator[dict[str, Any]]:
        ends = {path: domain.representatives() for path, domain in self.domains.items()}
        yield {}
        for path, domain in self.domains.items():
            yield from ({path: value} for value in ends[path])
            for other in self._paired_with(path, ends):
                yield from ({path: value, other: end} for value in domain.options for end in ends[other])

    def _paired_with(self, path: str, ends: Mapping[str, Sequence[Any]]) -> list[str]:
        """Leaves beside and below a choice whose values meet each of its options."""
        section = path.rpartition(".")[0]
        if not section or not 0 < len(self.domains[path].options) <= MAX_PAIRED:
            return []
        return [
            other
            for other in ends
            if other != path and other.startswith(f"{section}.") and len(ends[other]) <= MAX_PAIRED
        ]

    def _too_many_corners(self) -> Iterator[tuple[str, str]]:
        """The leaf whose options, with those beside it, would take too long to try."""
        ends = {path: domain.representatives() for path, domain in self.domains.items()}
        total = 0
        for path, domain in self.domains.items():
            pairs = len(domain.options) * sum(len(ends[other]) for other in self._paired_with(path, ends))
            total += len(ends[path]) + pairs
            if total > MAX_CORNERS:
                yield path, f"makes more than {MAX_CORNERS:,} corners of the space with the leaves beside it to check"
                return

    def _point(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Nested, in the order of the file whatever the order of decision."""
        point: dict[str, Any] = {}
        for path in self.leaves:
            if path in chosen:
                set_path(point, path, chosen[path])
        return point
