"""The JSON Schema of a domain: what may stand in the place of a value of one type, in `ray.tune`'s form or in W&B's.

As `domain_forms` reads it. Draft 7, for `space_schema`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sweeper.domain import KINDS
from sweeper.domain_forms import MAX_OPTIONS, MAX_STEPS

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
WHEN = "when"
MAX_WORDS = 12  # of a definition's name
_OPTIONS = ("choice", "value", "values")
_RANGE = ("min", "max", "q")


def ref(name: str) -> Schema:
    """What refers to a definition."""
    return {"$ref": f"#/definitions/{name}"}


def name_of(schema: Schema) -> str:
    """A definition's name, from what it says: those that say the same are one."""
    text = json.dumps(schema)
    for words, symbol in (("exclusiveMinimum", "over"), ("exclusiveMaximum", "below"), ("minimum", "from")):
        text = text.replace(words, symbol)
    text = re.sub(r"\b(type|enum|anyOf|ref|definitions)\b", " ", text.replace("maximum", "to"))
    return "_".join(re.findall(r"[A-Za-z0-9.+-]+", text)[:MAX_WORDS])


def domain_of(schema: Schema) -> Schema:
    """The domain of a value with this schema: bounds of a range are held to it as the value is."""
    types = set(_types(schema))
    listed = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_OPTIONS, "uniqueItems": True}
    properties: dict[str, Schema] = {
        "choice": {**listed, "description": "One of these."},
        "values": {**listed, "description": "One of these (W&B)."},
        "value": schema,
        WHEN: ref(WHEN),
    }
    distributions = ["categorical", "constant"]
    if types & {"number", "integer"}:
        step = {"type": "number", "exclusiveMinimum": 0}
        whole = {"type": "integer", "minimum": -MAX_STEPS, "maximum": MAX_STEPS}
        one = schema if types <= {"number", "integer"} else _numbers(schema)
        properties["randint"] = _pair(
            [{"allOf": [one, whole]}, whole], "A whole number from low up to, and without, high."
        )
        properties["quniform"] = _pair([one, one, step], "Multiples of q: [low, high, q].")
        properties |= {"min": one, "max": one, "q": step}
        distributions += ["int_uniform", "q_uniform"]
        if "number" in types:
            properties["uniform"] = _pair([one, one], "Any number from low to high.")
            positive = {"allOf": [one, {"exclusiveMinimum": 0}]}
            properties["loguniform"] = _pair([positive, one], "Any number from low to high, alike in every decade.")
            distributions += ["uniform", "log_uniform_values"]
    properties["distribution"] = {"enum": distributions}
    return {
        "type": "object",
        "allOf": [ref("domain")],
        "properties": properties,
        "additionalProperties": False,
    }


def form_of_a_domain() -> Schema:
    """What holds for the domain of any type: one form, and only `when` beside it."""
    beside: dict[str, tuple[str, ...]] = {key: (key, WHEN) for key in KINDS}
    beside |= {key: (key, "distribution", WHEN) for key in ("value", "values")}
    beside |= dict.fromkeys(_RANGE, (*_RANGE, "distribution", WHEN))
    required: list[Sequence[str]] = [*((key,) for key in (*KINDS, "value", "values")), ("min", "max")]
    return {
        "dependencies": {key: {"propertyNames": {"enum": list(names)}} for key, names in beside.items()},
        "anyOf": [{"required": list(keys)} for keys in required],
    }


def unless_options(domain: Schema, section: Schema) -> Schema:
    """A section, or a choice between whole ones."""
    return {"if": {"anyOf": [{"required": [key]} for key in _OPTIONS]}, "then": domain, "else": section}


def _pair(items: list[Schema], description: str) -> Schema:
    return {
        "description": description,
        "type": "array",
        "items": items,
        "minItems": len(items),
        "maxItems": len(items),
    }


def _types(schema: Schema) -> Iterable[str]:
    for one in schema.get("anyOf", [schema]):
        if "type" in one:
            yield one["type"]


def _numbers(schema: Schema) -> Schema:
    """The numbers among what may stand there."""
    found = [one for one in schema["anyOf"] if one.get("type") in ("number", "integer")]
    return found[0] if len(found) == 1 else {"anyOf": found}
