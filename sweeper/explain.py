"""Validation errors in plain words: dotted path, what is wrong, what was given, what is allowed, the nearest name.

pydantic finds the problems and says them in its own terms; users of a space file read these sentences instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sweeper import registry
from sweeper.conditions import ABSENT, get_path
from sweeper.domain import nearest
from sweeper.domain_forms import parse_domain
from sweeper.registry import Settings
from sweeper.wording import one_line

FAMILY_OF_FIELD = {
    "dataset": "datasets",
    "of": "datasets",
    "pools": "datasets",
    "teachers": "teachers",
    "synthetic": "generators",
    "filter": "filters",
    "scheduler": "schedulers",
    "embedding": "losses",
    "track": "trackers",
}
_NUMBER_TYPES = {int, float}
_PHRASES = {
    "greater_than": "has to be greater than {gt:g}",
    "greater_than_equal": "has to be at least {ge:g}",
    "less_than": "has to be less than {lt:g}",
    "less_than_equal": "has to be at most {le:g}",
    "finite_number": "has to be a finite number",
    "multiple_of": "has to be a multiple of {multiple_of:g}",
    "too_short": "has too few items, {actual_length} where at least {min_length} are needed",
    "too_long": "has too many items, {actual_length} where at most {max_length} are taken",
    "string_too_short": "has to be text of at least {min_length} characters",
    "string_too_long": "has to be text of at most {max_length} characters",
    "string_pattern_mismatch": "has to match the pattern {pattern}",
    "int_from_float": "has to be a whole number",
    "literal_error": "has to be {expected}",
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "dict": "a section",
    "model": "a section",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: dotted, as in the file.
        what: the sentence after the path, with what was given.
        hint: what is allowed or how to go on; stands in parentheses after the place.
        is_cross: it is about several settings together and none alone.
        is_unknown_key: the last name of `path` is not a setting.
        value: what was given, to find its line among the options of a choice.
        origin: where it stands, if that is known already.
    """

    path: str
    what: str
    hint: str = ""
    is_cross: bool = False
    is_unknown_key: bool = False
    value: Any = field(default=ABSENT, compare=False, repr=False)
    origin: str = ""

    def line(self, origin: str) -> str:
        """As the user reads it."""
        hint = one_line(self.hint, 2_000)
        return f"{one_line(self.path)}: {one_line(self.what)} ({origin}{'; ' if hint else ''}{hint})"

    @classmethod
    def of(cls, path: str, message: str, **rest: Any) -> Problem:
        """From one sentence, whose closing parenthesis, if it ends with one, is the hint."""
        depth = 0
        for position in range(len(message) - 1, 0, -1) if message.endswith(")") else ():
            depth += {")": 1, "(": -1}.get(message[position], 0)
            if depth == 0:
                what, hint = message[:position].rstrip(), message[position + 1 : -1]
                return cls(path=path, what=what, hint=hint, **rest)
        return cls(path=path, what=message, **rest)


def explain(error: ValidationError, root: type[BaseModel], tree: Mapping[str, Any]) -> list[Problem]:
    """All problems of validating `tree` as `root`, with paths as the file has them."""
    return [_problem(details, root, tree) for details in error.errors(include_url=False)]


def booleans_as_numbers(root: type[BaseModel], tree: Any, prefix: str = "") -> Iterator[Problem]:
    """`true` where a number belongs, which pydantic would take for 1."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        setting = root.model_fields.get(str(key))
        if setting is None:
            continue
        types = _types_in(setting.annotation)
        if isinstance(value, bool) and types & _NUMBER_TYPES and bool not in types:
            yield Problem(path=f"{prefix}{key}", what=f"has to be a number; given {show(value)}", value=value)
        elif (
            isinstance(value, Mapping)
            and get_origin(setting.annotation) is dict
            and not isinstance(value.get("kind"), str)
        ):
            for name in value:
                if (cls := model_at(root, [key, name], tree)) is not None:
                    yield from booleans_as_numbers(cls, value[name], f"{prefix}{key}.{name}.")
        elif (
            cls := model_at(root, [key, "default"] if get_origin(setting.annotation) is dict else [key], tree)
        ) is not None:
            yield from booleans_as_numbers(cls, value, f"{prefix}{key}.")


def model_at(root: type[BaseModel], keys: Sequence[Any], tree: Any) -> type[BaseModel] | None:
    """The model that validates the section at `keys`, a kind's `Config` included; None where there is none."""
    cls, node, rest = root, tree, [str(key) for key in keys]
    while rest:
        key = rest.pop(0)
        setting = cls.model_fields.get(key)
        node = node.get(key) if isinstance(node, Mapping) else None
        found = [t for t in _types_in(setting.annotation) if issubclass(t, BaseModel)] if setting is not None else []
        if setting is None or not found:
            return None
        if get_origin(setting.annotation) is dict:
            if not rest:
                return None
            entry = rest.pop(0)  # absent where one entry stands for all (`synthetic: {kind: ...}`)
            node = node.get(entry, node) if isinstance(node, Mapping) else None
        cls = found[0]
        if cls is Settings:
            kind = node.get("kind") if isinstance(node, Mapping) else None
            if not isinstance(kind, str) or kind not in registry.kinds(FAMILY_OF_FIELD[key]):
                return None
            cls = registry.config_class(FAMILY_OF_FIELD[key], kind)
    return cls


def show(value: Any) -> str:
    """A value as the file would have it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a section with {', '.join(map(str, value)) or 'nothing in it'}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _types_in(annotation: Any) -> set[type]:
    if arguments := get_args(annotation):
        if get_origin(annotation) is dict:  # keys are names, never numbers
            arguments = arguments[1:]
        return {t for argument in arguments for t in _types_in(argument)}
    return {annotation} if isinstance(annotation, type) else set()


def _problem(details: ErrorDetails, root: type[BaseModel], tree: Mapping[str, Any]) -> Problem:
    kind, loc, value = details["type"], details["loc"], details["input"]
    keys = _in_tree(loc, tree, keep_last=kind == "missing")
    path = ".".join(keys)
    ctx = details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(loc, path, root, tree)
    if kind in ("unknown_kind", "no_kind"):
        return Problem.of(f"{path}.kind", details["msg"], value=value.get("kind"))
    if kind == "unknown_setting":
        return Problem.of(f"{path}.{ctx['key']}", details["msg"], is_unknown_key=True)
    if kind == "missing":
        return Problem(path=path, what="is missing")
    if isinstance(value, Mapping) and _is_domain(value):
        return Problem(
            path=path, what=f"is a domain ({', '.join(map(str, value))})", hint="only leaves under trial may vary"
        )
    if kind == "value_error":
        return _from_validator(str(ctx["error"]), loc, path, root, tree)
    return replace(_plain(path, details, ctx, value), value=value)


def _plain(path: str, details: ErrorDetails, ctx: Mapping[str, Any], value: Any) -> Problem:
    kind = details["type"]
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(ctx["expected"]))
        return Problem(
            path=path,
            what=f"{show(value)} is not allowed{nearest(str(value), options)}",
            hint=f"allowed: {ctx['expected']}",
        )
    if kind in _PHRASES:
        return Problem(path=path, what=f"{_PHRASES[kind].format(**ctx)}; given {show(value)}")
    family, _, _ = kind.rpartition("_")
    if family in _TYPES:
        return Problem(path=path, what=f"has to be {_TYPES[family]}; given {show(value)}")
    message = details["msg"].replace("Input should be", "has to be").replace("Value error, ", "")
    return Problem.of(path, f"{message}; given {show(value)}" if kind not in ("no_section",) else message)


def _in_tree(loc: Sequence[Any], tree: Any, *, keep_last: bool) -> list[str]:
    """The part of a pydantic location that is in the file; the rest are its names for keys and union members."""
    keys: list[str] = []
    node = tree
    for depth, key in enumerate(loc):
        inside = isinstance(node, Mapping) and key in node
        if inside or (isinstance(node, list | tuple) and isinstance(key, int) and key < len(node)):
            node = node[key]
            keys.append(str(key))
        elif keep_last and depth == len(loc) - 1:
            keys.append(str(key))
    return keys


def _unknown_key(loc: Sequence[Any], path: str, root: type[BaseModel], tree: Mapping[str, Any]) -> Problem:
    cls = model_at(root, loc[:-1], tree)
    names = list(cls.model_fields) if cls is not None else []
    section = path.rpartition(".")[0]
    where = f"of {section}" if section else "of a space file"
    return Problem(
        path=path,
        what=f"{loc[-1]!r} is not a setting {where}{nearest(str(loc[-1]), names)}",
        hint=f"allowed: {', '.join(names)}" if names else "",
        is_unknown_key=True,
    )


def _from_validator(
    message: str, loc: Sequence[Any], path: str, root: type[BaseModel], tree: Mapping[str, Any]
) -> Problem:
    """A sentence of our own; `field: sentence` from a section's validator blames that field."""
    cls = model_at(root, loc, tree)
    name, colon, rest = message.partition(": ")
    if cls is not None and colon and name in cls.model_fields:
        return Problem.of(f"{path}.{name}".lstrip("."), rest, is_cross=True)
    if cls is None and colon and get_path(tree, f"{path}.{name.partition('.')[0]}", ABSENT) is not ABSENT:
        return Problem.of(f"{path}.{name}", rest)  # an entry of a section with names of the user's own
    return Problem.of(path, message, is_cross=cls is not None)


def _is_domain(value: Mapping[str, Any]) -> bool:
    try:
        return parse_domain(value) is not None
    except ValueError:
        return True
