"""Row groups of an artifact's tables: a few megabytes of neighbouring rows, read without the rest of their file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from sweeper import arrow
from sweeper.errors import RunFailed

if TYPE_CHECKING:
    from sweeper.record import Record
    from sweeper.store import Store


def listed(store: Store, record: Record) -> list[tuple[int, int, int]]:
    """File, number and rows of each, in the order of the rows of `Store.read_table`; reads every file's end.

    Raises:
        RunFailed: as of `Store.read_table`.
    """

    def counts(name: str) -> list[int]:
        with store.filesystem.open_input_file(store.path(name)) as source:
            metadata = pq.read_metadata(source)
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    return [
        (file, number, num_rows)
        for file, entry in enumerate(record.tables)
        for number, num_rows in enumerate(store.storage.attempt(partial(counts, f"{record.prefix}/{entry.name}")))
    ]


def read(store: Store, record: Record, file: int, number: int, columns: Sequence[str]) -> Any:
    """Some columns of one as a `pyarrow.Table`, of which alone the bytes are read: pages against their checksums.

    For a file that this machine read whole before, and so hashed: what became of it since is seen by the pages.

    Args:
        file, number: as `listed`.

    Raises:
        RunFailed: it is gone or was changed; the artifact is forgotten, so that the next run makes it anew.
    """
    entry = record.tables[file]

    def rows() -> Any:
        with (
            store.filesystem.open_input_file(store.path(f"{record.prefix}/{entry.name}")) as source,
            pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as opened,
        ):
            return arrow.plain(opened.read_row_group(number, columns=[record.columns.get(c, c) for c in columns]))

    try:
        table = store.storage.attempt(rows)
    except RunFailed:
        store.read_bytes(record, entry.name)  # hashed: raises and forgets the artifact where its bytes are others
        raise
    return table.rename_columns(list(columns))
