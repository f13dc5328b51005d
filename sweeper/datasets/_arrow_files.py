"""Arrow files as the `datasets` library writes them, mapped into memory: an image column and a label column.

An image is bytes in the row, or a path beside it, which counts only below the folders that the data came from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sweeper.arrow import plain
from sweeper.datasets._folders import digest
from sweeper.datasets._label_column import FileRows, hub_class_names
from sweeper.datasets._parquet_rows import check_columns, image_bytes
from sweeper.errors import InputError
from sweeper.wording import one_line


def open_table(path: str) -> pa.Table:
    """A file of Arrow's stream format, without reading its rows. Raises OSError or `pyarrow.ArrowException`."""
    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


def scan_tables(
    split: str, files: Sequence[str], columns: Mapping[str, str], roots: Sequence[Path], where: str
) -> tuple[FileRows, list[str]]:
    """Labels and image digests of a split, and the source of each row: `arrow:<file>#<row>` or `file:<path>`.

    Raises:
        InputError: a column that is missing or of another type, a null, a path that leads elsewhere.
    """
    labels: list[pa.Array] = []
    digests: list[str] = []
    sources: list[str] = []
    names = None
    for file in files:
        try:
            table = open_table(file)
            check_columns(table.schema, split, columns, where)
            table = plain(table.select(list(columns.values())))
        except pa.ArrowException as error:
            raise InputError(f"{where}: {split}: {one_line(file)} cannot be read as Arrow: {error}") from None
        label = table.column(columns["label"])
        if label.null_count:
            raise InputError(f"{where}: column {columns['label']!r} of {split} holds nulls; fill them or drop the rows")
        as_text = not pa.types.is_integer(label.type)
        labels += label.cast(pa.string() if as_text else pa.int64()).chunks
        names = hub_class_names(table.schema, columns["label"])
        for row, (data, path) in enumerate(_images(table.column(columns["image"]))):
            if data is not None:
                digests.append(hashlib.sha256(data).hexdigest())
                sources.append(f"arrow:{file}#{row}")
            else:
                path = _allowed(path, roots, f"{where}: {split}#{len(digests)}")
                digests.append(digest(path))
                sources.append(f"file:{path}")
    joined = pa.concat_arrays(labels) if labels else pa.array([], pa.int64())
    return FileRows(split, split, joined, None, digests, names), sources


def image_row(table: pa.Table, column: str, row: int) -> bytes:
    """The encoded image of a row. Raises LookupError, `pyarrow.ArrowException`."""
    data: bytes | None = image_bytes(plain(table.select([column])).column(column))[row].as_py()
    if data is None:
        raise LookupError(f"the image of row {row} is null")
    return data


def _images(column: pa.ChunkedArray) -> Iterator[tuple[bytes | None, str | None]]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 256):
            part = chunk.slice(start, 256)
            if not pa.types.is_struct(part.type):
                yield from ((data, None) for data in part.to_pylist())
                continue
            has_path = part.type.get_field_index("path") >= 0
            paths = pc.struct_field(part, "path").to_pylist() if has_path else [None] * len(part)
            yield from zip(pc.struct_field(part, "bytes").to_pylist(), paths, strict=True)


def _allowed(path: str | None, roots: Sequence[Path], where: str) -> str:
    if path is None:
        raise InputError(f"{where}: the image is null; fill it or drop the row")
    full = os.path.normpath(os.path.abspath(path))
    if not any(full.startswith(f"{os.path.normpath(root.absolute())}{os.sep}") for root in roots):
        raise InputError(f"{where}: {one_line(path)} is not in the dataset's folder; save the images with their bytes")
    return full
