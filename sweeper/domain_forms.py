"""How a space file writes a domain: in the short form of `ray.tune`, or in W&B's sweep form.

`{loguniform: [1e-4, 1e-2]}` and `{distribution: log_uniform_values, min: 1e-4, max: 1e-2}` are the same `Domain`.
W&B's keys: https://docs.wandb.ai/guides/sweeps/sweep-config-keys. Distributions whose bounds are exponents are
refused, because the same numbers would mean something else here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sweeper.domain import KINDS, Domain, is_multiple, is_same, multiple, nearest

MAX_OPTIONS = 1_000
MAX_CONDITIONS = 50
MAX_BOUND = 1e100  # beyond it, sums and products of bounds stop being finite
MAX_STEPS = 2**53  # whole numbers beyond it have gaps
_WANDB_KEYS = ("values", "value", "distribution", "min", "max")
_WANDB_DISTRIBUTIONS = ("categorical", "constant", "int_uniform", "uniform", "q_uniform", "log_uniform_values")


def parse_domain(value: Any) -> Domain | None:
    """Read a domain in the short or in W&B's form; None for a constant or a section.

    `{value: x, when: ...}` is a conditional constant: a choice of one.

    Raises:
        ValueError: meant as a domain and malformed; the message says what is allowed.
    """
    if not isinstance(value, Mapping):
        return None
    rest = {key: item for key, item in value.items() if key != "when"}
    short = [key for key in rest if key in KINDS]
    if short:
        if len(rest) > 1:
            stray = next(key for key in rest if key != short[0])
            hint = nearest(str(stray), ["when"])
            raise ValueError(f"{short[0]!r} has {stray!r} beside it{hint} (only `when` may stand beside a domain)")
        domain = _SHORT[short[0]](rest[short[0]])
    elif any(key in rest for key in _WANDB_KEYS):
        domain = _wandb(rest)
    else:
        _refuse_lookalike(value, rest)
        return None
    return replace(domain, when=_conditions(value["when"])) if "when" in value else domain


def _refuse_lookalike(value: Mapping[Any, Any], rest: Mapping[Any, Any]) -> None:
    """A misspelt domain would pass as a section with one key and fail far from its cause."""
    if "when" in value:
        hint = nearest(str(next(iter(rest), "")), KINDS)
        raise ValueError(
            f"`when` needs a domain beside it{hint} (allowed: {', '.join(KINDS)}; a constant: {{value: x, when: ...}})"
        )
    if len(rest) == 1:
        key, arguments = next(iter(rest.items()))
        near = difflib.get_close_matches(str(key), KINDS, n=1, cutoff=0.7)
        if isinstance(arguments, list | tuple) and near:
            raise ValueError(f"{key!r} is not a domain; did you mean {near[0]!r}? (allowed: {', '.join(KINDS)})")


def _conditions(given: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f"`when` needs a mapping from a path under trial to a value or a list of values; given {given!r}"
        )
    if len(given) > MAX_CONDITIONS:
        raise ValueError(f"`when` has {len(given)} conditions, more than {MAX_CONDITIONS}")
    conditions = []
    for path, allowed in given.items():
        values = tuple(allowed) if isinstance(allowed, list | tuple) else (allowed,)
        if not isinstance(path, str) or not values:
            raise ValueError(f"`when` needs a dotted path and at least one value; given {path!r}: {allowed!r}")
        if len(values) > MAX_OPTIONS:
            raise ValueError(f"`when` lists {len(values)} values of {path!r}, more than {MAX_OPTIONS}")
        conditions.append((path.removeprefix("trial."), values))
    return tuple(conditions)


def _number(value: Any, what: str) -> float:
    """A finite number, also from text such as '1e-4', which PyYAML takes for a string."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{what} has to be a number; given {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} has to be a finite number; given {value!r}")
    if abs(value) > MAX_BOUND:
        raise ValueError(f"{what} has to be between -{MAX_BOUND:g} and {MAX_BOUND:g}; given {value!r}")
    return value


def _whole(value: Any, what: str) -> int:
    number = _number(value, what)
    if number != int(number):
        raise ValueError(f"{what} has to be a whole number; given {value!r}")
    if abs(number) > MAX_STEPS:
        raise ValueError(f"{what} has to be between -2**53 and 2**53; given {value!r}")
    return int(number)


def _bounds(kind: str, arguments: Any, count: int = 2) -> list[float]:
    names = ["low", "high", "q"][:count]
    if not isinstance(arguments, list | tuple) or len(arguments) != count:
        raise ValueError(f"{kind} needs a list [{', '.join(names)}]; given {arguments!r}")
    numbers = [_number(value, f"{kind}'s {name}") for name, value in zip(names, arguments, strict=True)]
    if numbers[0] >= numbers[1]:
        raise ValueError(f"{kind} needs low < high; given [{arguments[0]!r}, {arguments[1]!r}]")
    return numbers


def _choice(options: Any) -> Domain:
    if not isinstance(options, list | tuple) or not options:
        raise ValueError(f"choice needs a list of at least one option; given {options!r}")
    if len(options) > MAX_OPTIONS:
        raise ValueError(f"choice lists {len(options)} options, more than {MAX_OPTIONS}")
    for position, option in enumerate(options):
        if any(is_same(option, earlier) for earlier in options[:position]):
            raise ValueError(f"choice lists {option!r} twice")
        inside = _domain_inside(option)
        if inside:
            raise ValueError(
                f"the option {option!r} holds a domain ({inside}), and options are taken as they are;"
                " give it a leaf of its own with `when`"
            )
    return Domain(kind="choice", options=tuple(options))


def _domain_inside(option: Any) -> str:
    if not isinstance(option, Mapping):
        return ""
    domain = parse_domain(option)
    return domain.describe() if domain else next(filter(None, map(_domain_inside, option.values())), "")


def _uniform(arguments: Any) -> Domain:
    low, high = _bounds("uniform", arguments)
    return Domain(kind="uniform", low=float(low), high=float(high))


def _loguniform(arguments: Any) -> Domain:
    low, high = _bounds("loguniform", arguments)
    if low <= 0:
        raise ValueError(f"loguniform needs low > 0; given {arguments!r}")
    return Domain(kind="loguniform", low=float(low), high=float(high))


def _randint(arguments: Any) -> Domain:
    low, high = (_whole(bound, "a bound of randint") for bound in _bounds("randint", arguments))
    return Domain(kind="randint", low=low, high=high)


def _quniform(arguments: Any) -> Domain:
    low, high, q = _bounds("quniform", arguments, 3)
    if q <= 0:
        raise ValueError(f"quniform needs q > 0; given {arguments!r}")
    if max(abs(low), abs(high)) / q > MAX_STEPS:
        raise ValueError(f"quniform's q = {q:g} is too small a step for {low:g} to {high:g}")
    for bound in (low, high):
        if not is_multiple(bound, q):
            raise ValueError(
                f"quniform draws multiples of q = {q:g}, and its bound {bound:g} is none;"
                f" the nearest is {multiple(round(bound / q), q):g}"
            )
    return Domain(kind="quniform", low=float(low), high=float(high), q=float(q))


_SHORT: dict[str, Callable[[Any], Domain]] = {
    "choice": _choice,
    "uniform": _uniform,
    "loguniform": _loguniform,
    "randint": _randint,
    "quniform": _quniform,
}


def _wandb(given: Mapping[Any, Any]) -> Domain:
    """W&B's form, whose distribution may be left to be guessed from the keys."""
    name = given.get("distribution")
    if name is None:
        if "values" in given:
            name = "categorical"
        elif "value" in given:
            name = "constant"
        else:
            ends = [given.get("min"), given.get("max")]
            name = "int_uniform" if all(isinstance(e, int) and not isinstance(e, bool) for e in ends) else "uniform"
    if name not in _WANDB_DISTRIBUTIONS:
        if "log_uniform" in str(name):
            hint = "; its bounds are exponents: write log_uniform_values with the values themselves"
        else:
            hint = nearest(str(name), _WANDB_DISTRIBUTIONS)
        raise ValueError(f"distribution {name!r} is not read{hint} (allowed: {', '.join(_WANDB_DISTRIBUTIONS)})")
    keys = {"categorical": ("values",), "constant": ("value",), "q_uniform": ("min", "max", "q")}.get(
        name, ("min", "max")
    )
    if name == "q_uniform":
        given = {"q": 1, **given}
    missing = [key for key in keys if key not in given]
    stray = [str(key) for key in given if key not in (*keys, "distribution")]
    if missing or stray:
        problem = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(stray)} beside it"
        raise ValueError(f"the distribution {name} {problem}; it takes {', '.join(keys)} (given {dict(given)!r})")
    return _wandb_domain(name, given)


def _wandb_domain(name: str, given: Mapping[Any, Any]) -> Domain:
    if name == "categorical":
        return _choice(given["values"])
    if name == "constant":
        return _choice([given["value"]])
    if name == "int_uniform":  # W&B's upper bound is included
        return _randint([given["min"], _whole(given["max"], "max") + 1])
    if name == "q_uniform":
        return _quniform([given["min"], given["max"], given["q"]])
    return (_uniform if name == "uniform" else _loguniform)([given["min"], given["max"]])
