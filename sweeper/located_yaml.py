"""YAML with the line of every value, read so that a hostile or careless file ends in a sentence.

Scalars follow YAML 1.2's core schema and not PyYAML's 1.1: `1e-4` is a number, `no` and `on` are words, `1:30` is not
90 and a date stays text. The tree is built from parser events, without a constructor that could make objects, and
with bounds on size, depth, what aliases expand to and how long the paths get. What is wrong with one value is a
`Fault`, collected beside the tree, so that a reader can say everything that is wrong with a file at once.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sweeper.errors import InputError
from sweeper.wording import one_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_PATHS = 20_000_000  # characters of all dotted paths, which long keys deep in a file multiply
MAX_INT_DIGITS = 40
INT_RANGE = (-(2**63), 2**64 - 1)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DIGITS = r"[0-9]+(_[0-9]+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(rf"[-+]?(\.[0-9]+|{_DIGITS}(\.({_DIGITS})?)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}


class Fault(NamedTuple):
    """One value that cannot be taken as it stands: its dotted path, `file:line`, and what is wrong with it."""

    path: str
    origin: str
    message: str

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.message}") + f" ({self.origin})"


class Document:
    """A file's `tree` with `overrides` applied and, through `origin`, where each dotted path of it was written.

    `faults` are the values that cannot be taken: not finite, beyond 64 bits, tagged, of a key given twice or that is no
    text, an alias of nothing. The tree holds their text in their place, or nothing.

    Raises:
        InputError: no such file, not a file, too large, not UTF-8, not YAML, not a mapping.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = one_line(str(path))
        self.overrides: list[str] = []
        self._origins: dict[str, str] = {}
        builder = _Builder(_read_text(str(path)), self.path, self._origins)
        tree = builder.build()
        self.faults: tuple[Fault, ...] = tuple(builder.faults)
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
        name = one_line(f"--set {assignment}", 200)
        dotted, equals, text = assignment.partition("=")
        dotted = dotted.strip()
        keys = dotted.split(".")
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise InputError(f"{name}: needs the form a.b=value")
        value = (builder := _Builder(text, name, {})).build()
        if builder.faults:
            raise InputError("\n".join(f"{name}: {one_line(fault.message)}" for fault in builder.faults))
        self.overrides.append(name)
        node = self.tree
        for depth, key in enumerate(keys[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                above = ".".join(keys[: depth + 1])
                found = f"{one_line(repr(node), 80)} ({self.origin(above)})"
                raise InputError(f"{name}: {above} is {found}, which has nothing below it")
        node[keys[-1]] = value
        for known in [path for path in self._origins if path.startswith(f"{dotted}.")]:
            del self._origins[known]
        for depth in range(1, len(keys)):
            self._origins.setdefault(".".join(keys[:depth]), name)
        self._origins[dotted] = name


def _read_text(path: str) -> str:
    name = one_line(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        beside = Path(path).parent
        near = sorted(one_line(str(found)) for found in beside.glob("*.yaml"))[:8] if beside.is_dir() else []
        raise InputError(f"{name}: no such file" + (f" (there are: {', '.join(near)})" if near else "")) from None
    except IsADirectoryError:
        raise InputError(f"{name}: this is a folder; give a space file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES:,} bytes; this is not a space file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8") from None


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
        self.faults: list[Fault] = []
        self.num_nodes = self.num_path_characters = 0
        self.section = ""  # the path that is read at the moment

    def build(self) -> Any:
        try:
            return self._document(iter(yaml.parse(self.text, Loader=_LOADER)))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line if mark else 0
            raise self._fatal(line, self._syntax(error, line)) from None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position)
            raise self._fatal(line, f"the character {error.character!r} may not stand in YAML") from None

    def _document(self, events: Iterator[yaml.Event]) -> Any:
        value = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                value = self._node(next(events), events, "", 0)
                next(events)  # the document's end
                after = next(events)
                if isinstance(after, yaml.DocumentStartEvent):
                    self.section = ""
                    raise self._fatal(_line(after), "a second document (`---`) begins; only one is allowed")
        return value

    def _origin(self, line: int) -> str:
        return self.source if self.source.startswith("--set") else f"{self.source}:{line + 1}"

    def _fatal(self, line: int, message: str) -> InputError:
        """Reading ends here; what was wrong before is said as well."""
        where = f" (in {one_line(self.section, 200)})" if self.section else ""
        return InputError("\n".join([*map(str, self.faults), f"{self._origin(line)}: {message}{where}"]))

    def _fault(self, path: str, line: int, message: str) -> None:
        self.faults.append(Fault(path, self._origin(line), message))

    def _syntax(self, error: yaml.MarkedYAMLError, line: int) -> str:
        lines = self.text.splitlines()
        shown = lines[line] if line < len(lines) else ""
        if "\t" in shown[: len(shown) - len(shown.lstrip())] or "\\t" in str(error.problem):
            return "a tab in the indentation; YAML takes spaces only"
        return one_line(f"not valid YAML: {', '.join(filter(None, [error.problem, error.context]))}")

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: str, depth: int) -> Any:
        self.section = path
        line = _line(event)
        before = self.num_nodes
        self._count(1, line)
        self._check_depth(depth, line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, depth, line)
        if getattr(event, "tag", None) not in (None, "!"):
            self._fault(path, line, f"the tag {event.tag} is not taken; write the plain value")  # type: ignore[attr-defined]
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                below = _below(path, len(value))
                self._write(below, item)
                value.append(self._node(item, events, below, depth + 1))
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
            below = _below(path, key)
            if not isinstance(key, str):
                self._fault(below, line, f"the key {key!r} has to be text; write it in quotes")
            self._write(below, event)
            value = self._node(next(events), events, below, depth + 1)
            if key == "<<":
                merged = {**self._merge(value, below, line), **merged}
                self.origins.update({_below(path, name): f"{self.source}:{line + 1}" for name in merged})
            elif isinstance(key, str):
                if key in mapping:
                    self._fault(below, line, f"given twice, first in line {lines[key]}; keep one")
                mapping[key] = value
                lines.setdefault(key, line + 1)
        return {**merged, **mapping}

    def _merge(self, value: Any, path: str, line: int) -> dict[str, Any]:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self._fault(path, line, "`<<` merges a mapping or a list of mappings")
            return {}
        return {key: item for part in reversed(parts) for key, item in part.items()}

    def _alias(self, event: yaml.AliasEvent, path: str, depth: int, line: int) -> Any:
        if event.anchor not in self.anchors:
            self._fault(path, line, f"*{event.anchor} refers to no earlier &{event.anchor}")
            return None
        value, size = self.anchors[event.anchor]
        self._count(size, line)
        self._check_depth(depth + _height(value), line)
        return copy.deepcopy(value)

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fatal(line, f"nested deeper than {MAX_DEPTH} levels")

    def _count(self, nodes: int, line: int) -> None:
        self.num_nodes += nodes
        if self.num_nodes > MAX_NODES:
            raise self._fatal(line, f"more than {MAX_NODES:,} values after expanding aliases; this is not a space file")

    def _write(self, path: str, event: yaml.Event) -> None:
        self.num_path_characters += len(path)
        if self.num_path_characters > MAX_PATHS:
            raise self._fatal(_line(event), "the keys are too long; this is not a space file")
        self.origins[path] = self._origin(_line(event))

    def _scalar(self, event: yaml.ScalarEvent, path: str, line: int) -> Any:
        """The value; text that is meant as a number and cannot be one stays text."""
        text = event.value
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            base = 0 if text[:2] in ("0x", "0o") else 10
            if len(text) <= MAX_INT_DIGITS and INT_RANGE[0] <= (whole := int(text, base)) <= INT_RANGE[1]:
                return whole
            self._fault(path, line, f"{one_line(text, 40)} is beyond 64 bits")
        elif _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
            self._fault(path, line, f"{one_line(text, 40)} is not a finite number")
        elif _FLOAT.fullmatch(text):
            return float(text)
        return text


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _height(value: Any) -> int:
    """Levels below a value."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + _height(child) for child in children), default=0)
