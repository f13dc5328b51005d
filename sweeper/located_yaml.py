"""YAML with the line of every value, read so that a hostile or careless file ends in a sentence.

Scalars follow YAML 1.2's core schema and not PyYAML's 1.1: `1e-4` is a number, `no` and `on` are words, `1:30` is not
90 and a date stays text. The tree is built from parser events, without a constructor that could make objects, and
with bounds on size, depth and what aliases expand to.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sweeper.errors import InputError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}


class Document:
    """A file's `tree` with `overrides` applied and, through `origin`, where each dotted path of it was written.

    Raises:
        InputError: no such file, not a file, too large, not UTF-8, not YAML, not a mapping, duplicate keys.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.overrides: list[str] = []
        self._origins: dict[str, str] = {}
        tree = _Builder(_read_text(self.path), self.path, self._origins).build()
        if tree is None:
            raise InputError(f"{self.path}: the file is empty; search_spaces/ has examples")
        if not isinstance(tree, dict):
            raise InputError(
                f"{self.path}:1: a space file is a mapping (`name:`, `dataset:`, ...); this is {_kind(tree)}"
            )
        self.tree: dict[str, Any] = tree

    def origin(self, dotted: str) -> str:
        """`file:line` (or the option) of the value at a path, or of the closest thing above it that was written."""
        while dotted:
            if dotted in self._origins:
                return self._origins[dotted]
            dotted = dotted.rpartition(".")[0]
        return f"{self.path}:1"

    def override(self, assignment: str) -> None:
        """Apply `a.b=value`, the value read as YAML; what was below the path is replaced.

        Raises:
            InputError: not an assignment, or the path leads through a value.
        """
        name = f"--set {assignment}"
        dotted, equals, text = assignment.partition("=")
        dotted = dotted.strip()
        keys = dotted.split(".")
        if not equals or not all(keys):
            raise InputError(f"{name}: needs the form a.b=value")
        value = _Builder(text, name, {}).build()
        self.overrides.append(name)
        node = self.tree
        for depth, key in enumerate(keys[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                above = ".".join(keys[: depth + 1])
                raise InputError(f"{name}: {above} is {node!r} ({self.origin(above)}), which has nothing below it")
        node[keys[-1]] = value
        for known in [path for path in self._origins if path.startswith(f"{dotted}.")]:
            del self._origins[known]
        for depth in range(1, len(keys)):
            self._origins.setdefault(".".join(keys[:depth]), name)
        self._origins[dotted] = name


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        beside = Path(path).parent
        near = sorted(str(found) for found in beside.glob("*.yaml"))[:8] if beside.is_dir() else []
        raise InputError(f"{path}: no such file" + (f" (there are: {', '.join(near)})" if near else "")) from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; give a space file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes; this is not a space file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8") from None


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else repr(value)


def _line(event: yaml.Event) -> int:
    """Counted from 0."""
    return event.start_mark.line if event.start_mark else 0


class _Builder:
    """One pass over the events of one document; `origins` is filled with `source:line` for each dotted path."""

    def __init__(self, text: str, source: str, origins: dict[str, str]) -> None:
        self.text, self.source, self.origins = text, source, origins
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.num_nodes = 0
        self.duplicates: list[str] = []

    def build(self) -> Any:
        events: Iterator[yaml.Event] | None = None
        try:
            events = iter(yaml.parse(self.text, Loader=_LOADER))
            value = self._document(events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._wrong(mark.line if mark else 0, self._syntax(error, mark.line if mark else 0)) from None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position)
            raise self._wrong(line, f"the character {error.character!r} may not stand in YAML") from None
        if self.duplicates:
            raise InputError("\n".join(self.duplicates))
        return value

    def _document(self, events: Iterator[yaml.Event]) -> Any:
        value = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                value = self._node(next(events), events, "", 0)
                next(events)  # the document's end
                after = next(events)
                if isinstance(after, yaml.DocumentStartEvent):
                    raise self._wrong(_line(after), "a second document (`---`) begins; only one is allowed")
        return value

    def _wrong(self, line: int, message: str) -> InputError:
        where = self.source if self.source.startswith("--set") else f"{self.source}:{line + 1}"
        return InputError(f"{where}: {message}")

    def _syntax(self, error: yaml.MarkedYAMLError, line: int) -> str:
        lines = self.text.splitlines()
        shown = lines[line] if line < len(lines) else ""
        if "\t" in shown[: len(shown) - len(shown.lstrip())] or "\\t" in str(error.problem):
            return "a tab in the indentation; YAML takes spaces only"
        return f"not valid YAML: {', '.join(filter(None, [error.problem, error.context]))}"

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: str, depth: int) -> Any:
        line = _line(event)
        before = self.num_nodes
        self._count(1, line)
        if depth > MAX_DEPTH:
            raise self._wrong(line, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        if getattr(event, "tag", None) not in (None, "!"):
            raise self._wrong(line, f"the tag {event.tag} is not taken; write the plain value")  # type: ignore[attr-defined]
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                self._write(f"{path}.{len(value)}", item)
                value.append(self._node(item, events, f"{path}.{len(value)}", depth + 1))
        else:
            value = self._mapping(events, path, depth)
        if getattr(event, "anchor", None):
            self.anchors[event.anchor] = (value, self.num_nodes - before)  # type: ignore[attr-defined]
        return value

    def _mapping(self, events: Iterator[yaml.Event], path: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            line = _line(event)
            key = self._node(event, events, path, depth + 1)
            if not isinstance(key, str):
                raise self._wrong(line, f"the key {key!r} has to be text; write it in quotes")
            below = f"{path}.{key}" if path else key
            self._write(below, event)
            value = self._node(next(events), events, below, depth + 1)
            if key == "<<":
                merged = {**self._merge(value, line), **merged}
                self.origins.update({f"{path}.{name}".lstrip("."): f"{self.source}:{line + 1}" for name in merged})
                continue
            if key in mapping:
                self.duplicates.append(f"{below}: given twice ({self.source}:{lines[key]} and {line + 1}); keep one")
            mapping[key] = value
            lines.setdefault(key, line + 1)
        return {**merged, **mapping}

    def _merge(self, value: Any, line: int) -> dict[str, Any]:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise self._wrong(line, "`<<` merges a mapping or a list of mappings")
        return {key: item for part in reversed(parts) for key, item in part.items()}

    def _alias(self, event: yaml.AliasEvent, line: int) -> Any:
        if event.anchor not in self.anchors:
            raise self._wrong(line, f"*{event.anchor} refers to no earlier &{event.anchor}")
        value, size = self.anchors[event.anchor]
        self._count(size, line)
        return copy.deepcopy(value)

    def _count(self, nodes: int, line: int) -> None:
        self.num_nodes += nodes
        if self.num_nodes > MAX_NODES:
            raise self._wrong(line, f"more than {MAX_NODES:,} values after expanding aliases; this is not a space file")

    def _write(self, path: str, event: yaml.Event) -> None:
        self.origins[path.lstrip(".")] = f"{self.source}:{_line(event) + 1}"

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_FINITE.fullmatch(text):
            raise self._wrong(line, f"{text} is not a finite number")
        if _INT.fullmatch(text) and len(text) < 300:
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            if not math.isfinite(number := float(text)):
                raise self._wrong(line, f"{text} is not a finite number")
            return number
        return text
