"""Names things by what they contain: canonical JSON and sha256.

Two values with equal meaning must have equal bytes, in any process and in any year, because artifacts are looked up by
them. So a value without one obvious spelling (NaN, a set, an object) is refused and never guessed at, as in
marin-community/marin's `execution/fingerprint.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; floats as their shortest round-trip `repr`, so that 1 and 1.0 differ.

    Accepts None, bool, int, str, finite floats, lists, tuples (as lists), mappings with string keys and pydantic models
    (with all fields of what a field really holds, not only those of the class that it is annotated with).

    Raises:
        TypeError: anything else; the message names the path inside the value.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(value: object) -> str:
    """64 hexadecimal digits. Raises TypeError as `canonical_json` does."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Digest of a file's contents; its name does not enter."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(path: str | Path) -> str:
    """Digest of the names (relative, with forward slashes) and the contents of every file below a folder.

    Empty folders, modes and times do not enter: a copy of the folder on another machine has the same digest.

    Raises:
        NotADirectoryError: `path` is no folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    files = {file.relative_to(root).as_posix(): file_sha256(file) for file in root.rglob("*") if file.is_file()}
    return fingerprint(files)


def _plain(value: object, path: str) -> Any:
    """`value` in JSON's own types. Exact types only: a subclass (numpy's float64, an enum) may print otherwise."""
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return _text(value, path)
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{path}: {value!r} has no canonical form; give a finite number")
        return value
    if isinstance(value, BaseModel):
        # Without serialize_as_any a `Config` in a field annotated `Settings` dumps as {}: all kinds would look equal.
        return _plain(value.model_dump(mode="python", serialize_as_any=True), path)
    if type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        wrong = [key for key in value if type(key) is not str]
        if wrong:
            raise TypeError(f"{path}: the key {wrong[0]!r} is a {type(wrong[0]).__name__}; keys must be str")
        return {_text(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{path}: a {type(value).__name__} has no canonical form; "
        "allowed: None, bool, int, float, str, list, tuple, mappings with str keys and pydantic models"
    )


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TypeError(f"{path}: {value!r} is not valid Unicode text (a lone surrogate)") from None
    return value
