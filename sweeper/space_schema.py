"""The JSON Schema of a space file, from the models that read it: editors complete and check a file while it is written.

It is draft 7, which every editor's YAML support knows. A section with `kind:` is checked by the settings of that kind,
and whatever stands under `trial:` may be a domain of its own type, in `ray.tune`'s form or in W&B's. What only the
reader can know (conditions that contradict each other, names of one section used in another) stays with the reader:
the schema refuses nothing that `sweeper run` takes, and most of what it does not take.

`sweeper/schemas/space.schema.json` is what `sweeper schema space` prints of the kinds that are shipped.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sweeper import registry
from sweeper.config import SweepConfig
from sweeper.domain_forms import MAX_OPTIONS
from sweeper.domain_schema import DRAFT, WHEN, Schema, domain_of, form_of_a_domain, name_of, ref, unless_options
from sweeper.explain import FAMILY_OF_FIELD
from sweeper.registry import MAX_NUMBER, Settings
from sweeper.trial import NO_EMBEDDING, TrialConfig, embedding_kinds

ONE_OR_SEVERAL = ("synthetic", "track")  # a section with `kind:`, or named ones
_TOP = {
    "title": "sweeper space file",
    "description": "Which small model, taught by which big one, with which loss and how much synthetic data.",
}


def space_schema() -> Schema:
    """The schema of a whole file, every kind of every family included."""
    return _Builder().file()


def sentences_about(docstring: str, setting: str) -> str:
    """What a class says of one of its settings: the sentences of its docstring that name it in backquotes."""
    text = " ".join(inspect.cleandoc(docstring).split())
    found = [part for part in re.split(r"(?<=\.)\s+(?=[A-Z`])", text) if re.search(rf"`{re.escape(setting)}\b", part)]
    return " ".join(found)


def explained(model: type[BaseModel], setting: str) -> str:
    """`sentences_about` a setting, of the class and those that it inherits its settings from."""
    classes = [one for one in model.__mro__ if issubclass(one, BaseModel) and one not in (BaseModel, Settings)]
    return " ".join(filter(None, (sentences_about(one.__doc__ or "", setting) for one in classes)))


class _Builder:
    """Collects the definitions that a schema refers to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def file(self) -> Schema:
        for family in dict.fromkeys(FAMILY_OF_FIELD.values()):
            self.definitions[family] = _by_kind(
                registry.kinds(family), {kind: ref(f"{family}.{kind}") for kind in registry.kinds(family)}
            )
            for kind in registry.kinds(family):
                self.definitions[f"{family}.{kind}"] = self._section(registry.config_class(family, kind))
        whole = self._section(SweepConfig)
        for name in ONE_OR_SEVERAL:
            one, several = ref(FAMILY_OF_FIELD[name]), whole["properties"][name]
            is_one = {"properties": {"kind": {"type": "string"}}, "required": ["kind"]}
            whole["properties"][name] = {"if": is_one, "then": one, "else": several}
        self.definitions[TrialConfig.__name__] = self._section(TrialConfig)
        whole["properties"]["trial"] = {
            **self._space(TrialConfig.__name__),
            "description": "The space: any leaf may be a domain, such as {choice: [a, b]} or {uniform: [0, 1]}",
        }
        self.definitions[WHEN] = self._when()
        self.definitions["domain"] = form_of_a_domain()
        return {"$schema": DRAFT, **whole, **_TOP, "definitions": dict(sorted(self.definitions.items()))}

    def _section(self, model: type[BaseModel]) -> Schema:
        """A model as it stands in a file; those that it holds become definitions by their names."""
        made = model.model_json_schema(mode="validation", ref_template="#/definitions/{model}")
        inner = {found.__name__: found for found in models_below(model)}
        for name, schema in made.pop("$defs", {}).items():
            if name != Settings.__name__:
                self.definitions[name] = _plain(schema, inner[name])
        return _plain(made, model)

    def _space(self, name: str) -> Schema:
        """The definition of that name, every leaf of which may be a domain."""
        plain = self.definitions[name]
        return {**plain, "properties": {key: self._node(key, value) for key, value in plain["properties"].items()}}

    def _node(self, key: str, plain: Schema) -> Schema:
        if "const" in plain:  # of a section that stands for one kind
            return plain
        said: Schema = {name: plain[name] for name in ("description", "default") if name in plain}
        schema = {name: value for name, value in plain.items() if name not in said}
        if key == "embedding":
            return {**self._embedding(), **said}
        section = schema.get("$ref", "").rpartition("/")[2]
        if section:
            if f"trial.{section}" not in self.definitions:
                self.definitions[f"trial.{section}"] = {}  # taken, while what it holds is made
                self.definitions[f"trial.{section}"] = unless_options(self._domain(schema), self._space(section))
            return {**ref(f"trial.{section}"), **said}
        return {**self._leaf(schema), **said}

    def _leaf(self, schema: Schema) -> Schema:
        if schema.get("type") == "object":  # arguments of any name, whose leaves may be domains as well
            return schema
        leaf: Schema = {"if": {"type": "object"}, "then": self._domain(schema), "else": schema}
        values = [True, False] if schema.get("type") == "boolean" else schema.get("enum")
        if values:  # editors do not look for words to offer into an `else`
            leaf["examples"] = values
        return self._define(f"leaf.{name_of(schema)}", leaf)

    def _domain(self, schema: Schema) -> Schema:
        return self._define(f"domain.{name_of(schema)}", domain_of(schema))

    def _define(self, name: str, schema: Schema) -> Schema:
        assert self.definitions.setdefault(name, schema) == schema, f"two definitions of {name}"
        return ref(name)

    def _embedding(self) -> Schema:
        """`kind:` may be a choice, and then the settings of all kinds stand side by side."""
        kinds = {NO_EMBEDDING: "No embedding loss."} | registry.kinds("losses")
        branches: dict[str, Schema] = {}
        variants: dict[str, dict[str, list[str]]] = {}
        for kind in embedding_kinds():
            properties = self.definitions[f"losses.{kind}"]["properties"]
            branches[kind] = ref(f"trial.losses.{kind}")
            self.definitions[f"trial.losses.{kind}"] = self._space(f"losses.{kind}")
            for field, schema in properties.items():
                if field == "kind":
                    continue
                bare = {key: value for key, value in schema.items() if key not in ("description", "default")}
                variants.setdefault(field, {}).setdefault(json.dumps(bare), []).append(kind)
        fields: dict[str, Schema] = {}
        for field, found in variants.items():
            schemas = [json.loads(text) for text in found]
            owners = [kind for owners in found.values() for kind in owners]
            of_all = "" if len(owners) == len(branches) else f"Of {', '.join(sorted(owners))}."
            leaf = self._leaf(schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
            fields[field] = {**leaf, **({"description": of_all} if of_all else {})}
        fields = {"kind": self._leaf({"enum": list(kinds)}), **fields}
        side_by_side = {"type": "object", "properties": fields, "additionalProperties": False}
        branches[NO_EMBEDDING] = side_by_side
        one = {"properties": {"kind": {"type": "string"}}, "required": ["kind"]}
        section = {"if": one, "then": _by_kind(kinds, branches), "else": side_by_side}
        options = self._domain({"anyOf": [{"enum": [NO_EMBEDDING, None]}, ref("losses")]})
        self.definitions["trial.embedding"] = {
            "if": {"type": "object"},
            "then": unless_options(options, section),
            "else": {"enum": [NO_EMBEDDING, None]},
        }
        return ref("trial.embedding")

    def _when(self) -> Schema:
        paths = sorted(set(self._paths(ref(TrialConfig.__name__), "")))
        value = {"type": ["string", "number", "boolean", "null"]}
        listed = {"type": "array", "items": value, "minItems": 1, "maxItems": MAX_OPTIONS}
        self.definitions[f"{WHEN}.values"] = {"anyOf": [value, listed]}
        return {
            "description": "The leaf is there where all of these hold: a path under trial, and its value or values.",
            "type": "object",
            "minProperties": 1,
            "properties": {path: ref(f"{WHEN}.values") for path in paths},
            "patternProperties": {r"^(trial\.|student\.model_args\.)": {}},
            "additionalProperties": False,
        }

    def _paths(self, node: Schema, path: str) -> Iterator[str]:
        if path.endswith("loss.embedding"):
            kinds = embedding_kinds()
            yield from (f"{path}.{f}" for kind in kinds for f in registry.config_class("losses", kind).model_fields)
        section = self.definitions.get(node.get("$ref", "").rpartition("/")[2], {})
        if path:
            yield path
        for key, value in section.get("properties", {}).items():
            yield from self._paths(value, f"{path}.{key}" if path else key)


def models_below(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A section and all that it holds, outermost first."""
    found: list[type[BaseModel]] = [model]
    for one in found:  # grows while it is read
        for field in one.model_fields.values():
            found += [other for other in _classes_in(field.annotation) if other not in found]
    return found


def _classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes_in(argument)


def _plain(schema: Schema, model: type[BaseModel]) -> Schema:
    """A section as pydantic describes it, with kinds in their places, and what the docstring says of each setting."""
    docstring = model.__doc__ or ""
    properties = {}
    for name, found in schema["properties"].items():
        found = _without_titles(found)
        family = FAMILY_OF_FIELD.get(name)
        if family is not None:
            found = json.loads(json.dumps(found).replace(f'/{Settings.__name__}"', f'/{family}"'))
        found = _bounded(found)
        if said := explained(model, name):
            found["description"] = said
        properties[name] = found
    kept = {key: value for key, value in schema.items() if key not in ("title", "properties")}
    return {**kept, "description": " ".join(inspect.cleandoc(docstring).split()), "properties": properties}


def _without_titles(value: Any) -> Any:
    """Also with tuples as draft 7 writes them."""
    if isinstance(value, dict):
        renamed = {"items" if key == "prefixItems" else key: item for key, item in value.items() if key != "title"}
        return {key: _without_titles(item) for key, item in renamed.items()}
    return [_without_titles(item) for item in value] if isinstance(value, list) else value


def _bounded(schema: Schema) -> Schema:
    """A number without a greatest value of its own has the one that `Settings` gives it."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_bounded(one) for one in schema["anyOf"]]}
    if schema.get("type") in ("number", "integer"):
        least = {} if {"minimum", "exclusiveMinimum"} & schema.keys() else {"minimum": -MAX_NUMBER}
        most = {} if {"maximum", "exclusiveMaximum"} & schema.keys() else {"maximum": MAX_NUMBER}
        return {**schema, **least, **most}
    return dict(schema)


def _by_kind(kinds: Mapping[str, str], branches: Mapping[str, Schema]) -> Schema:
    """A section whose `kind:` says what else may stand in it; one that is misspelt is the only thing blamed."""
    return {
        "type": "object",
        "properties": {"kind": {"enum": list(kinds), "enumDescriptions": list(kinds.values())}},
        "required": ["kind"],
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": branch}
            for kind, branch in branches.items()
        ],
    }
