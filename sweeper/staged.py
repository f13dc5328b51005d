"""One build's view of a staged prefix: the files that an earlier build left there, and a folder of its own.

A stage that was killed goes on from the files that it had finished. Each is whole or absent, names its rows and what
they cost, and counts only if it can be read to its last byte; the rows of all others are made again. Every build writes
below a folder of its own and commits only the files that it counted: a builder that was taken for dead and goes on
writing changes nothing. Batches of two builds need not have the same bounds.

What the ledger can not know is what a worker had done of the batch in which it was killed: at most one batch of each
worker, each time that a stage is cut off, is charged to nobody.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeper import arrow
from sweeper.errors import RunFailed
from sweeper.lease import Tell
from sweeper.store import Record, Store

if TYPE_CHECKING:
    from sweeper.shards import Progress

Note = Mapping[str, Any]  # what a file says of itself besides its rows, as JSON in the metadata of its schema
_METADATA = b"sweeper"
COSTS = frozenset({"seconds", "device"})  # of a file whose rows cost something: no build is charged to nobody


class Spoilt(RunFailed):
    """What was written is not what was asked for: nothing of it is kept, unlike after any other failure."""


def with_note(table: pa.Table, note: Note) -> pa.Table:
    """The table as it is written: its file carries the note."""
    return table.replace_schema_metadata({_METADATA: json.dumps(note)})


class Staged:
    """The files below a prefix that count.

    Args:
        wanted: the sample ids of the whole build.
        copies: rows of each id; all of them lie in one file.
        fits: whether a file with this note belongs to the build.
        says: what every note of the build has to say.
        seen: is given the rows and the note of each file that counts.

    Attributes:
        kept: sample ids by the name, below the prefix, of each file that an earlier build left.
        missing: the other ids.
        own: the prefix that this build's workers write below.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        wanted: Sequence[str],
        *,
        copies: int = 1,
        fits: Callable[[Note], bool] = lambda note: True,
        says: Set[str] = COSTS,
        seen: Callable[[pa.Table, Note], None] = lambda rows, note: None,
    ) -> None:
        self.store, self.prefix, self._copies = store, prefix, copies
        self.kept: dict[str, list[str]] = {}
        self.missing = set(wanted)
        for name in store.storage.files(prefix, deep=False):
            table = read_whole(store, f"{prefix}/{name}")
            if table is None or "sample_id" not in table.column_names:
                continue
            ids, note = Counter(table["sample_id"].to_pylist()), _note_of(table)
            is_ours = note.keys() >= says and ids.keys() <= self.missing and fits(note)
            if is_ours and set(ids.values()) == {copies}:
                self.kept[name] = list(ids)
                self.missing -= ids.keys()
                seen(table, note)
        self._folder = secrets.token_hex(4)
        self.own = f"{prefix}/{self._folder}"

    def names(self) -> list[str]:
        """The files that count, by their names below the prefix."""
        return [*self.kept, *(f"{self._folder}/{name}" for name in self.store.storage.files(self.own, deep=False))]

    def read(self, columns: Sequence[str]) -> tuple[pa.Table, list[Note]]:
        """The rows of all files that count, and the note of each file."""
        return read(self.store, self.prefix, self.names(), columns)

    def report(self, progress: Progress | None, tell: Tell) -> None:
        """Begin the progress of a stage with what is there, and say so."""
        there = sum(map(len, self.kept.values()))
        if there:
            tell(f"resumed: {there:,} of {there + len(self.missing):,} images were there")
            if progress is not None:
                progress(there * self._copies, is_new=False)

    @contextmanager
    def discarded_if_spoilt(self) -> Iterator[None]:
        """Nothing stays of a build whose rows are wrong; after any other failure the next build goes on from them."""
        try:
            yield
        except Spoilt:
            self.store.discard(self.prefix)
            raise

    def commit(self, key: str, kind: str, spec: Mapping[str, Any], **rest: Any) -> Record:
        """Commit the files that count as `Store.commit` does."""
        return self.store.commit(key, kind, spec, self.prefix, files=self.names(), **rest)


def devices(notes: Iterable[Note]) -> str:
    """The device that made the rows of some files; of builds on several ones all names."""
    return " + ".join(sorted({note["device"] for note in notes}))


def read(store: Store, prefix: str, names: Sequence[str], columns: Sequence[str]) -> tuple[pa.Table, list[Note]]:
    """Columns of files below a prefix that nothing was committed of, and the files' notes."""
    tables = [store.storage.attempt(partial(_read, store, f"{prefix}/{name}", list(columns))) for name in names]
    whole = pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})
    return whole, [_note_of(table) for table in tables]


def read_whole(store: Store, name: str) -> pa.Table | None:
    """All rows of one file, every page compared with its checksum; None where it is torn, changed or not there."""
    data = store.storage.read(name)
    if data is None:
        return None
    try:
        return arrow.plain(pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read())
    except (OSError, pa.ArrowException):
        return None


def _read(store: Store, name: str, columns: list[str]) -> pa.Table:
    with store.filesystem.open_input_file(store.path(name)) as source, pq.ParquetFile(source) as file:
        return arrow.plain(file.read(columns=columns))


def _note_of(table: pa.Table) -> Note:
    try:
        note: Note = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    except ValueError:  # a flipped bit: pages have checksums, the rest of a file has none
        return {}
    return note
