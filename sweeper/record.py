"""What the store writes down about an artifact, and its bytes: canonical JSON that closes with its own checksum.

Reading accepts exactly the bytes that writing gives, so that no cut and no flipped bit passes, not even one that leaves
the JSON's meaning alone. Unknown fields of a later version are ignored; the checksum covers them. The checksum is no
signature: a record that somebody made up may still name no file outside the store.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from sweeper.fingerprint import canonical_json, fingerprint
from sweeper.ledger import Charge

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGES = ("sweeper", "ray", "torch", "timm", "diffusers", "pyarrow")


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: its name relative to the prefix, with forward slashes, and its size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """An artifact.

    Attributes:
        spec: what it was made from, of JSON's types.
        prefix: where its files lie, relative to the store.
        columns: logical column names to those in the files; empty means that the files' own names hold.
        created: UTC, ISO 8601.
    """

    key: str
    kind: str
    spec: dict[str, Any]
    prefix: str
    files: tuple[FileEntry, ...]
    columns: dict[str, str]
    rows: int | None
    meta: dict[str, Any]
    charge: Charge | None
    dependencies: tuple[str, ...]
    created: str
    versions: dict[str, str]

    @property
    def tables(self) -> list[FileEntry]:
        """The parquet files in the order of their own names. KeyError: there is none."""
        found = [entry for entry in self.files if entry.name.endswith(".parquet")]
        if not found:
            raise KeyError(f"{self.kind} {self.key} has no parquet file")
        return sorted(found, key=lambda entry: (entry.name.rpartition("/")[2], entry.name))

    def findings(self, present: dict[str, tuple[int, str | None]]) -> Iterable[Finding]:
        """Compare with what is there: size and, where known, sha256 by file name."""
        for entry in self.files:
            size, sha256 = present.get(entry.name, (None, None))
            if size is None:
                problem = "is missing"
            elif size != entry.size:
                problem = f"has {size} bytes, should have {entry.size}"
            elif sha256 not in (None, entry.sha256):
                problem = f"has sha256 {sha256}, should have {entry.sha256}"
            else:
                continue
            yield Finding(self.key, f"{self.prefix}/{entry.name}", problem)


@dataclass(frozen=True)
class Finding:
    """Something wrong with an artifact; `path` is relative to the store."""

    key: str
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


def encode(record: Record) -> bytes:
    """Raises TypeError where a field has no canonical JSON."""
    body = dataclasses.asdict(record)
    return canonical_json({**body, "checksum": fingerprint(body)})


def decode(data: bytes, key: str) -> Record:
    """The record of `key`. Raises ValueError with what is wrong when these are not exactly its bytes."""
    try:
        body = json.loads(data)
        checksum = body.pop("checksum")
        intact = checksum == fingerprint(body) and data == canonical_json({**body, "checksum": checksum})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError("is torn or was changed: its checksum does not match")
    try:
        if body["key"] != key:
            raise ValueError(f"is the record of {body['key']}")
        body["files"] = tuple(FileEntry(**entry) for entry in body["files"])
        body["charge"] = body["charge"] and Charge(**body["charge"])
        body["dependencies"] = tuple(body["dependencies"])
        record = Record(**{field.name: body[field.name] for field in dataclasses.fields(Record)})
        names = (record.prefix, *(entry.name for entry in record.files))
        outside = [name for name in names if not stays_below(name)]
        # a cache names its files by them
        outside += [entry.sha256 for entry in record.files if not _SHA256.fullmatch(entry.sha256)]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"is not a record of this version: {error!r}") from error
    if outside:
        raise ValueError(f"names a file outside the store: {outside[0]!r}")
    return record


def stays_below(name: str) -> bool:
    """Whether a name with forward slashes is that of something below the folder that it is relative to."""
    return not {"\\", "\0"} & set(name) and not {"", ".", ".."} & set(name.split("/"))


@cache
def versions() -> dict[str, str]:
    """Python and the libraries whose numbers an artifact holds, as installed here."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # sweeper itself, when it runs from a checkout
    return found
