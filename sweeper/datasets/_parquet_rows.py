"""Rows of parquet files on any place: scanned once for labels, splits and digests, then read by row group."""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeper.datasets import decode_image
from sweeper.datasets._label_column import FileRows, hub_class_names
from sweeper.datasets._listing import Found
from sweeper.datasets._places import Place, Remote, place_of
from sweeper.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SCAN_ROWS = 1024  # rows that are held at once while images are hashed
SCAN_THREADS = 8  # distant files at once, of which only the labels are read


def scan(place: Place, files: Sequence[Found], columns: Mapping[str, str], where: str) -> list[FileRows]:
    """Labels, splits and image digests of files, with their columns checked.

    On a disk the bytes of every image are hashed. Elsewhere images are not read: a row counts as its file's digest and
    its number.

    Args:
        columns: the names of the columns `image`, `label` and, where there is one, `split`.

    Raises:
        InputError: a file that is no parquet, a column that is missing or of another type, a null.
    """
    if not isinstance(place, Remote):
        return [_scan(place, file, columns, None, where) for file in files]
    start = len(place.root) + 1
    digests = place.digests([file.source[start:] for file in files])

    def scanned(file: Found, digest: str) -> FileRows:
        return place.attempt(lambda: _scan(place, file, columns, digest, where))

    with ThreadPoolExecutor(SCAN_THREADS) as threads:
        return list(threads.map(scanned, files, digests))


def _scan(place: Place, file: Found, named: Mapping[str, str], digest: str | None, where: str) -> FileRows:
    labels: list[pa.Array] = []
    splits: list[str] = []
    digests: list[str] = []
    try:
        with place.open(file.source) as source, pq.ParquetFile(source) as opened:
            schema = opened.schema_arrow
            check_columns(schema, file.name, named, where)
            columns = list(named.values())[0 if digest is None else 1 :]
            for batch in opened.iter_batches(SCAN_ROWS, columns=columns):
                found = dict(zip(columns, (image_bytes(batch.column(column)) for column in columns), strict=True))
                for column, values in found.items():
                    if values.null_count:
                        row = len(digests) + values.is_null().to_pylist().index(True)
                        raise InputError(
                            f"{where}: column {column!r} is null in {file.name}#{row}; fill it or drop the row"
                        )
                rows = range(len(digests), len(digests) + len(batch))
                if digest is None:
                    digests += [hashlib.sha256(image).hexdigest() for image in found[named["image"]].to_pylist()]
                else:
                    digests += [f"{digest}#{row}" for row in rows]
                as_text = not pa.types.is_integer(schema.field(named["label"]).type)
                labels.append(found[named["label"]].cast(pa.string() if as_text else pa.int64()))
                splits += found[named["split"]].cast(pa.string()).to_pylist() if "split" in named else []
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: {file.name} cannot be read as parquet: {error}; write it again, or leave it out"
        ) from None
    joined = pa.concat_arrays(labels) if labels else pa.array([], pa.int64())
    names = hub_class_names(schema, named["label"])
    return FileRows(file.name, file.source, joined, splits if "split" in named else None, digests, names)


def check_columns(schema: pa.Schema, name: str, wanted: Mapping[str, str], where: str) -> None:
    """The image, label and (where it is named) split column, each present and of a type that can be read."""
    for key, column in wanted.items():
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{where}: no column {column!r} in {name}{hint} (it has {', '.join(schema.names)}; set `dataset.{key}`)"
            )
        kind = schema.field(column).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(plain) or pa.types.is_large_string(plain)
        if key == "image":
            fits, allowed = _is_image_type(kind), "binary, or a struct with a binary field `bytes`"
        elif key == "label":
            fits, allowed = text or pa.types.is_integer(kind), "an integer or a string"
        else:
            fits, allowed = text, "a string (train, val or test)"
        if not fits:
            raise InputError(f"{where}: column {column!r} of {name} is {kind}; {key} must be {allowed}")


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_image_type(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_bytes(images: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The encoded images; null where the struct, or the bytes in it, are null. Other columns as they are."""
    return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images


def decode_rows(path: str, column: str, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (`file#row`); each row group is read once.

    Args:
        path: the setting whose place the files lie on.
    """
    decoded: dict[int, Image.Image | Exception] = {}
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, source in enumerate(sources):
        name, _, row = source.rpartition("#")
        wanted[name].append((int(row), position))
    for name, rows in wanted.items():
        images = _read_rows(path, name, column, [row for row, _ in rows])
        for (_, position), data in zip(rows, images, strict=True):
            decoded[position] = decode_image(data) if isinstance(data, bytes) else data
    return [decoded[position] for position in range(len(sources))]


def _read_rows(path: str, source: str, column: str, rows: Sequence[int]) -> list[bytes | Exception]:
    """The encoded images of some rows of a file, in their order."""
    data: dict[int, bytes | Exception] = {}
    place = place_of(path)
    try:
        version = place.version(source)
        starts = place.attempt(lambda: _row_starts(path, source, version))
        by_group: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_group[int(np.searchsorted(starts, row, side="right")) - 1].append(row)
        for group, members in by_group.items():
            if group >= len(starts) - 1:
                data.update((row, IndexError(f"row {row} of {starts[-1]}")) for row in members)
                continue
            images = place.attempt(lambda group=group: _row_group(path, source, version, group, column))  # type: ignore[misc]
            for row in members:
                value = images[row - int(starts[group])].as_py()
                data[row] = value if value is not None else ValueError("the image is null")
    except (OSError, LookupError, pa.ArrowException) as error:  # it may have been written anew since
        return [error] * len(rows)
    return [data[row] for row in rows]


@lru_cache(maxsize=64)
def _row_starts(path: str, source: str, version: int) -> Any:
    """The first row of each row group, and the number of rows."""
    with place_of(path).open(source) as opened, pq.ParquetFile(opened) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes)])


@lru_cache(maxsize=1)
def _row_group(path: str, source: str, version: int, group: int, column: str) -> pa.ChunkedArray:
    """Encoded images of a row group. The last one is kept, since calls come in the order of the file."""
    with place_of(path).open(source) as opened, pq.ParquetFile(opened) as file:
        return image_bytes(file.read_row_group(group, columns=[column]).column(column))
