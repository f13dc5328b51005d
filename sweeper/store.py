"""Content-addressed artifacts in a folder or at `s3://bucket/prefix`.

    <uri>/data/<uuid>/...        files of one build, written in any order by any process; nobody reads them yet
    <uri>/pending/<key>.json     who is building it and where its files lie so far (`lease.py`)
    <uri>/records/<key>.json     written last and at once: an artifact exists when its record does

A record lists size and sha256 of its files and closes with a checksum of itself, so that whatever was torn, cut or
changed is seen, and counts as absent. Several records may share the files of one pass. No byte of an artifact is handed
out before its file was hashed; those of a distant store are read from a cache on this machine (`shard_cache.py`).
"""

from __future__ import annotations

import json
import re
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper import arrow
from sweeper.errors import RunFailed
from sweeper.fingerprint import canonical_json
from sweeper.garbage import GRACE_S, Garbage, collect, is_staged
from sweeper.ledger import Charge
from sweeper.record import FileEntry, Finding, Record, decode, encode, versions
from sweeper.redact import redacted
from sweeper.shard_cache import ShardCache
from sweeper.storage import Storage, sha256_of

__all__ = ["GRACE_S", "Finding", "Garbage", "Record", "Store"]

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class Store:
    """Artifacts below one URI. Pickles as little more than that; creates nothing until something is staged.

    Every method raises InputError, with the URI, while the place was never reached, and RunFailed once it was.

    Attributes:
        storage: the files below the URI, whatever they are.
    """

    def __init__(self, uri: str, reached: bool = False) -> None:
        self.storage = Storage(uri, reached)

    def __repr__(self) -> str:
        return f"Store({redacted(self.uri)!r})"

    @property
    def uri(self) -> str:
        """As given; a folder as its absolute path."""
        return self.storage.uri

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `path` belongs to."""
        return self.storage.filesystem

    def path(self, prefix: str) -> str:
        """Where a prefix or a file of the store lies on `filesystem`."""
        return self.storage.path(prefix)

    def staging(self) -> str:
        """A new, empty prefix to write files below, unreferenced until `commit`. InputError: cannot write here."""
        # A version 7 UUID (RFC 9562): its first 48 bits are the ms since 1970, so `gc` knows its age on any filesystem.
        number = time.time_ns() // 1_000_000 << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62
        prefix = f"data/{uuid.UUID(int=number | secrets.randbits(62))}"
        self.storage.create_dir(prefix)
        return prefix

    def write_bytes(self, prefix: str, name: str, data: bytes) -> None:
        """Write one file below a staged prefix; `name` may contain folders."""
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} is not a relative file name")
        self.storage.write(f"{prefix}/{name}", data)

    def commit(
        self,
        key: str,
        kind: str,
        spec: Mapping[str, Any],
        prefix: str,
        columns: Mapping[str, str] | None = None,
        rows: int | None = None,
        meta: Mapping[str, Any] | None = None,
        charge: Charge | None = None,
        dependencies: Sequence[str] = (),
        files: Sequence[str] | None = None,
    ) -> Record:
        """Make the files below `prefix` the artifact `key`, and return its record as it now stands.

        The first one wins: where another process committed `key` meanwhile, its record is returned, and this prefix is
        left to `discard` or `gc`. On S3 two commits in the same instant may both write; the record then is one of the
        two, whole, and both callers' files stay for the grace of `gc`.

        Args:
            files: those that belong to it, by their names below `prefix`; None: all.

        Raises:
            TypeError: spec or meta holds something without canonical JSON.
            ValueError: no file below `prefix`, or `key` cannot be a file name.
            RunFailed: one of `files` is not there.
        """
        target, plain_spec, plain_meta = _record_path(key), _plain(spec), _plain(meta or {})
        existing = self.get(key)
        if existing is not None:
            return existing
        present = self.storage.files(prefix, deep=True)
        if not present:
            raise ValueError(f"{key}: nothing was written below {self.uri}/{prefix}")
        if files is not None:
            lost = sorted(set(files) - present.keys())
            if lost:
                raise RunFailed(f"store: {self.uri}/{prefix}/{lost[0]} was deleted before it was committed; run again")
            present = {name: present[name] for name in sorted(files)}
        record = Record(
            key=key,
            kind=kind,
            spec=plain_spec,
            prefix=prefix,
            files=tuple(FileEntry(name, size, str(sha256)) for name, (size, sha256) in present.items()),
            columns=dict(columns or {}),
            rows=rows,
            meta=plain_meta,
            charge=charge,
            dependencies=tuple(dependencies),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        after = [f"{prefix}/{name}" for name in present]
        self.storage.publish(target, encode(record), after, is_taken=lambda: self.get(key) is not None)
        return self.get(key) or record

    def get(self, key: str) -> Record | None:
        """The record if it is whole and its files are there with their sizes; `verify(deep=True)` compares hashes."""
        record = self._read_record(_record_path(key))
        return record if isinstance(record, Record) and self._is_complete(record) else None

    def records(self) -> Iterator[Record]:
        """Whole records, by key; their files are not looked at."""
        return (record for _, record in self._all_records() if isinstance(record, Record))

    def find(self, kind: str, **spec_items: Any) -> list[Record]:
        """Artifacts of a kind, files present, whose spec has all these items."""
        wanted = _plain(spec_items)
        return [
            record
            for record in self.records()
            if record.kind == kind and {**record.spec, **wanted} == record.spec and self._is_complete(record)
        ]

    def verify(self, deep: bool = False) -> list[Finding]:
        """Everything wrong: damaged records, files missing or of another size; with `deep`, of other contents."""
        findings: list[Finding] = []
        for path, record in self._all_records():
            if isinstance(record, Record):
                findings += record.findings(self.storage.files(record.prefix, deep))
            elif record is not None:
                findings.append(Finding(Path(path).stem, path, record))
        return findings

    def read_table(self, record: Record, columns: Sequence[str] | None = None) -> Any:
        """All parquet files of the record as one `pyarrow.Table` with logical names.

        They come in the order of their own names, whichever build's folder they lie in: so the rows of a build that was
        cut off and gone on with lie as those of one that was not.

        Args:
            columns: logical names (or the files' own) in the order wanted; None: those of `record.columns`, else all.

        Raises:
            KeyError: there is no parquet file, or one lacks a column.
            RunFailed: one is gone or was changed; the artifact is forgotten, so that the next run makes it anew.
        """
        return pa.concat_tables(self.tables(record, columns), promote_options="default")

    def tables(self, record: Record, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """As `read_table`, one file at a time."""
        chosen = list(record.columns) if columns is None and record.columns else columns
        stored = None if chosen is None else [record.columns.get(name, name) for name in chosen]
        for entry in record.tables:
            name = entry.name
            with self._open(record, entry) as source, pq.ParquetFile(source) as file:
                missing = sorted(set(stored or ()) - set(file.schema_arrow.names))
                if missing:
                    raise KeyError(f"{record.kind} {record.key}: {name} has no column {', '.join(missing)}")
                table = self._plain(file.read(columns=stored), name)
            yield table if stored is None else table.select(stored).rename_columns(list(chosen or ()))

    def _plain(self, table: pa.Table, name: str) -> pa.Table:
        try:
            return arrow.plain(table)
        except pa.ArrowInvalid as error:
            raise RunFailed(f"store: {self.uri}: {name}: {error}; it is not sweeper's: remove the artifact") from error

    def read_bytes(self, record: Record, name: str) -> bytes:
        """One file. KeyError: the record has none such. RunFailed: as of `read_table`."""
        entry = {entry.name: entry for entry in record.files}[name]
        with self._open(record, entry) as file:
            data: bytes = file.read()
        return data

    def remove(self, key: str) -> None:
        """Forget an artifact. Its files stay until `gc`, since other records may share them."""
        self.storage.delete(_record_path(key))

    def discard(self, prefix: str) -> bool:
        """Delete the files below a staged prefix, unless a record refers to it. Returns whether they are gone."""
        if not is_staged(prefix):
            raise ValueError(f"{prefix!r} is not a prefix that `staging` gave")
        if any(record.prefix == prefix for record in self.records()):
            return False
        self.storage.delete(prefix, folder=True)
        return True

    def gc(self, dry_run: bool = False, grace_s: float = GRACE_S) -> list[Garbage]:
        """Delete what no whole record refers to and nobody has written to for `grace_s`; return it with its bytes.

        Only names that sweeper gives are touched: whatever else lies in the same folder is not ours. `dry_run` deletes
        nothing.
        """
        garbage = collect(self.storage, self.records, grace_s)
        for item in [] if dry_run else garbage:
            self.storage.delete(item.path, folder=is_staged(item.path))
        return garbage

    def _open(self, record: Record, entry: FileEntry) -> Any:
        """A file of an artifact as a `pyarrow.NativeFile`, its contents compared with their sha256."""
        name = f"{record.prefix}/{entry.name}"
        for _ in range(2):  # what went bad on the way here, or in the cache, is fetched once more
            file = self.storage.attempt(partial(self._open_unchecked, name, entry))
            if file is not None:
                if sha256_of(file) == entry.sha256:
                    file.seek(0)
                    return file
                file.close()
            if not self.storage.is_local:
                ShardCache.from_environment().forget(entry.sha256)
        for other in list(self.records()):
            if other.prefix == record.prefix and entry in other.files:
                self.remove(other.key)
        raise RunFailed(
            f"store: {self.uri}/{name} is gone or was changed since it was made; run again to rebuild {record.kind} "
            f"{record.key[:12]}, which is forgotten now (`sweeper store verify --deep` lists what else is damaged)"
        )

    def _open_unchecked(self, name: str, entry: FileEntry) -> Any:
        """None where there is no such file."""
        with suppress(FileNotFoundError):
            if self.storage.is_local:
                return pa.OSFile(self.path(name))
            cache = ShardCache.from_environment()
            path = cache.path(entry.sha256, entry.size, lambda file: self.storage.copy_to(name, file))
            if path is not None:
                return pa.OSFile(str(path))
        data = None if self.storage.is_local else self.storage.read(name)  # evicted at once, or larger than the cache
        return None if data is None else pa.BufferReader(data)

    def _is_complete(self, record: Record) -> bool:
        return not list(record.findings(self.storage.files(record.prefix, deep=False)))

    def _all_records(self) -> Iterator[tuple[str, Record | str | None]]:
        infos = [info for info in self.storage.listing("records") if info.is_file and info.extension == "json"]
        for path in sorted(f"records/{info.base_name}" for info in infos):
            yield path, self._read_record(path)

    def _read_record(self, path: str) -> Record | str | None:
        """The record, or what is wrong with it, or None where there is none."""
        data = self.storage.read(path)
        try:
            return None if data is None else decode(data, Path(path).stem)
        except ValueError as error:
            return str(error)


def _record_path(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} cannot be a key; allowed: letters, digits, '.', '_' and '-'")
    return f"records/{key}.json"


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in JSON's types, as it will be read back."""
    plain: dict[str, Any] = json.loads(canonical_json(value))
    return plain
