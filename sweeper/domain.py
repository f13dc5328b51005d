"""One leaf's domain: what it can be, as in `ray.tune`.

https://docs.ray.io/en/latest/tune/api/search_space.html has the meaning of the five kinds. How a file writes them is
`domain_forms`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["choice", "uniform", "loguniform", "randint", "quniform"]
KINDS: tuple[Kind, ...] = ("choice", "uniform", "loguniform", "randint", "quniform")
MAX_VALUES = 10_000
MAX_NAME = 100  # difflib's time grows with the square


def is_same(left: Any, right: Any) -> bool:
    """Equality in which `true` is not 1."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or nothing where none is close."""
    near = difflib.get_close_matches(name, list(names), n=1) if len(name) <= MAX_NAME else []
    return f"; did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What a leaf can be.

    Attributes:
        kind: how values are drawn.
        options: of a choice; anything that YAML can hold, mappings included. Empty for the other kinds.
        low, high: bounds. `randint` excludes `high`; the others may take both.
        q: step of `quniform`, of which both bounds are multiples.
        when: (dotted path under trial, values) pairs that all have to hold for the leaf to be active.
    """

    kind: Kind
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    q: float = 0.0
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def is_continuous(self) -> bool:
        """Whether it has more values than can be listed one by one."""
        return self.kind in ("uniform", "loguniform")

    def contains(self, value: Any) -> bool:
        """Whether `value` can be drawn (both ends of a continuous range count as inside)."""
        if self.kind == "choice":
            return any(is_same(value, option) for option in self.options)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.kind == "randint":
            return self.low <= value < self.high and value == int(value)
        return self.low <= value <= self.high and (self.kind != "quniform" or is_multiple(value, self.q))

    def representatives(self) -> tuple[Any, ...]:
        """All options of a choice; the smallest and the largest value of a range."""
        if self.kind == "choice":
            return self.options
        if self.kind == "randint":
            ends = (int(self.low), int(self.high) - 1)
            return ends if ends[0] != ends[1] else ends[:1]
        return (self.low, self.high)

    def interior(self) -> Any:
        """An ordinary value: the middle of a continuous range (in logs for `loguniform`), else the first one."""
        if self.kind == "uniform":
            return (self.low + self.high) / 2
        if self.kind == "loguniform":
            return math.sqrt(self.low) * math.sqrt(self.high)
        return self.representatives()[0]

    def at(self, quantile: float) -> Any:
        """The value below which a share `quantile` in [0, 1) of the draws lies: options in their order."""
        if self.kind == "choice":
            return self.options[int(quantile * len(self.options))]
        if self.kind == "randint":
            return int(self.low + math.floor(quantile * (self.high - self.low)))
        if self.kind == "quniform":
            first, last = round(self.low / self.q), round(self.high / self.q)
            return multiple(first + math.floor(quantile * (last - first + 1)), self.q)
        if self.kind == "loguniform":
            return math.exp(math.log(self.low) + quantile * (math.log(self.high) - math.log(self.low)))
        return self.low + quantile * (self.high - self.low)

    def values(self) -> tuple[Any, ...]:
        """Every value of a finite domain.

        Raises:
            ValueError: it is continuous, or has more than `MAX_VALUES` values.
        """
        if self.kind == "choice":
            return self.options
        if self.is_continuous:
            raise ValueError(f"{self.describe()} is a continuous range, where only finitely many values may stand")
        if self.num_values > MAX_VALUES:
            raise ValueError(f"{self.describe()} has {self.num_values} values, more than {MAX_VALUES}")
        if self.kind == "randint":
            return tuple(range(int(self.low), int(self.high)))
        first = round(self.low / self.q)
        return tuple(multiple(first + i, self.q) for i in range(self.num_values))

    @property
    def num_values(self) -> int:
        """How many values a domain has that is not continuous."""
        if self.kind == "choice":
            return len(self.options)
        step = self.q if self.kind == "quniform" else 1
        return round((self.high - self.low) / step) + (self.kind == "quniform")

    def snap(self, value: Any) -> Any:
        """A drawn value without rounding error (Optuna draws 0.30000000000000004), so that conditions on it hold."""
        if self.kind == "quniform":
            return multiple(round(value / self.q), self.q)
        return int(value) if self.kind == "randint" else value

    def describe(self) -> str:
        """For people: `loguniform 0.0001 to 0.01 when loss.embedding.kind is kdep`."""
        conditions = " and ".join(f"{path} is {' or '.join(map(str, values))}" for path, values in self.when)
        tail = f" when {conditions}" if conditions else ""
        if self.kind == "choice":
            return f"choice of {', '.join(map(str, self.options))}{tail}"
        step = f" by {self.q:g}" if self.kind == "quniform" else ""
        excluded = " (excluded)" if self.kind == "randint" else ""
        return f"{self.kind} {self.low:g} to {self.high:g}{excluded}{step}{tail}"

    def as_tree(self) -> dict[str, Any]:
        """The short form, as it stands in a file."""
        arguments: list[Any] = list(self.options) if self.kind == "choice" else [self.low, self.high]
        if self.kind == "quniform":
            arguments.append(self.q)
        conditions = {path: list(values) for path, values in self.when}
        return {self.kind: arguments, **({"when": conditions} if conditions else {})}


def is_multiple(value: float, q: float) -> bool:
    return math.isclose(value / q, round(value / q), abs_tol=1e-9)


def multiple(count: int, q: float) -> float:
    """`count * q` without the binary dust that makes 3 * 0.1 differ from 0.3."""
    return float(f"{count * q:.12g}")
