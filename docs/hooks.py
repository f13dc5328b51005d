"""What `mkdocs build` adds to the pages: tables of every key of a space file, kinds, and formulas without a script.

    <!-- keys: SearchConfig -->     a table of that model's keys, from the models that read the file
    <!-- kinds: datasets -->        the kinds of a family, each with its keys

What a key does is said by `keys.yaml` beside this file, else by the sentences of its model's docstring that name it.
Formulas ($...$ and $$...$$) become MathML here, so that a page needs neither a network nor JavaScript to show them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from latex2mathml.converter import convert
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sweeper import registry
from sweeper.config import SweepConfig
from sweeper.datasets import Fractions
from sweeper.jitter import JitterConfig
from sweeper.space_schema import explained, models_below
from sweeper.trial import TrialConfig

HERE = Path(__file__).parent
MARK = re.compile(r"^<!-- (keys|kinds): (\w+) -->$", re.MULTILINE)
MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything"}
SLIP = 1e6  # bounds from here on are there for slips of the finger, and tell nobody anything
SIGNS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where their marks are."""
    return MARK.sub(lambda found: keys(found[2]) if found[1] == "keys" else kinds(found[2]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Put MathML where formulas are."""
    return MATH.sub(lambda found: mathml(found[3], is_block=found[2] == "["), content)


def mathml(tex: str, *, is_block: bool) -> str:
    """A formula as the browser draws it by itself."""
    return convert(html.unescape(tex.strip()), display="block" if is_block else "inline")


@cache
def models() -> dict[str, type[BaseModel]]:
    """Every section of a space file but those of kinds, by name, outermost first."""
    roots = (SweepConfig, TrialConfig, Fractions, JitterConfig)
    found = {model.__name__: model for root in roots for model in models_below(root)}
    return {name: model for name, model in found.items() if name != "Settings"}


def keys(name: str) -> str:
    """A table of a model's keys."""
    return table(name, models()[name])


def kinds(family: str) -> str:
    """Each kind with its keys."""
    parts = []
    for kind, line in registry.kinds(family).items():
        parts.append(f"### `kind: {kind}` {{ #{family}-{kind} }}\n\n{line}\n")
        parts.append(table(f"{family}.{kind}", registry.config_class(family, kind)))
    return "\n".join(parts)


def table(name: str, model: type[BaseModel]) -> str:
    """Key, type, default, what is allowed, and what it does; a row each."""
    rows = ["| key | type | default | allowed | |", "|---|---|---|---|---|"]
    for key, field in model.model_fields.items():
        if key == "kind":
            continue
        cells = (f"`{key}`", type_of(field.annotation), default_of(field), allowed_of(field), said_of(name, key, model))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No keys of its own.\n"


@cache
def _written() -> dict[str, str]:
    found: dict[str, str] = yaml.safe_load((HERE / "keys.yaml").read_text(encoding="utf-8"))
    return found


def said_of(name: str, key: str, model: type[BaseModel]) -> str:
    """What a key does; empty where nobody says."""
    written = _written()
    family = name.partition(".")[0]
    own = written.get(f"{name}.{key}") or written.get(f"{family}.*.{key}")
    return own or explained(model, key)


def type_of(annotation: Any) -> str:
    """In words: `integer`, `list of text`, `section`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_of(one) for one in inner if one is not NoneType))
    if origin is Literal:
        return " or ".join(dict.fromkeys(WORDS[type(value)] for value in inner))
    if origin in (list, tuple):
        of = {type_of(one) for one in inner if one is not Ellipsis}
        return f"list of {' or '.join(sorted(of))}"
    if origin is dict:
        return f"{type_of(inner[1])} by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return WORDS[annotation]


def default_of(field: FieldInfo) -> str:
    """As it would stand in a file."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own"
    if value is None:
        return "none"
    if value in ([], {}, ()):
        return "empty"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}`"


def allowed_of(field: FieldInfo) -> str:
    """Bounds and choices."""
    metadata, found = [*field.metadata, *_metadata_in(field.annotation)], list(_literals(field.annotation))
    choices = ", ".join(f"`{value}`" for value in found)
    signed = ((word, getattr(item, name)) for kind, name, word in SIGNS for item in metadata if isinstance(item, kind))
    bounds = [f"{word} {value:g}" for word, value in signed if abs(value) < SLIP]
    bounds += ["not empty" for item in metadata if isinstance(item, MinLen)]
    return ", ".join(filter(None, [choices, *dict.fromkeys(bounds)]))


def _metadata_in(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        for item in get_args(annotation)[1:]:
            yield from item.metadata if isinstance(item, FieldInfo) else (item,)
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for inner in get_args(annotation):
            yield from _metadata_in(inner)


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Annotated, Union, UnionType, dict):
        for inner in get_args(annotation):
            yield from _literals(inner)
