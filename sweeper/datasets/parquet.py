"""Parquet files with an image column (bytes, or the hub's {bytes, path} struct) and a label column.

Labels are integers or names. Names of integer labels 0..K-1 come from `class_names`, else from the ClassLabel that the
`datasets` library writes into the schema (of which only the classes count that have a row); else they are the numbers
themselves, which may have gaps. Splits come from the `split` column, else from
file names as on the hub (`train-00000-of-00002.parquet`), else everything is train; a missing val or test is taken
from train by the seed.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from sweeper.datasets import (
    SPLIT_NAMES,
    DatasetIndex,
    Fractions,
    ImageSize,
    complete_splits,
    decode_image,
    given_path,
    refusing,
    shorten,
)
from sweeper.datasets._label_column import FileRows, hub_class_names, number_labels
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

SCAN_ROWS = 1024  # rows that are held at once while images are hashed


class Config(Settings):
    """`path` is a file, a folder or a glob; `fractions` apply to the splits that the data does not have."""

    kind: Literal["parquet"] = "parquet"
    path: Annotated[str, Field(min_length=1)]
    image: str = "image"
    label: str = "label"
    split: str | None = None
    class_names: tuple[str, ...] | None = None
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()

    @field_validator("class_names")
    @classmethod
    def _names_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = sorted({name for name in value or () if (value or ()).count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: given twice; every class needs a name of its own")
        return value


def index(config: Config, seed: int) -> DatasetIndex:
    """Read labels and splits, and hash the bytes of every image.

    Raises:
        InputError: no such file, a column missing or of another type, a null, a negative label, a class without a row,
            an unknown split, a class with too few images.
    """
    where = f"dataset.path: {one_line(config.path)}"
    with refusing(where):
        base, paths = _files(config.path, where)
        files = [_scan(path, path.relative_to(base).as_posix(), config, where) for path in paths]
    sample_ids = [f"{file.name}#{row}" for file in files for row in range(len(file.labels))]
    if not sample_ids:
        raise InputError(f"{where}: no row in {shorten([file.name for file in files])}")
    names, labels = number_labels(files, sample_ids, config.class_names, where)
    if len(names) < 2:
        raise InputError(f"{where}: one class only ({names[0]}); a classifier needs at least two")
    splits = complete_splits(_given_splits(files, where), labels, config.fractions, seed, names, where)
    digests = [digest for file in files for digest in file.digests]
    return DatasetIndex(
        class_names=names,
        sample_ids=sample_ids,
        labels=labels,
        splits=splits,
        sources=[f"{file.path.absolute()}#{row}" for file in files for row in range(len(file.labels))],
        content=fingerprint(
            {
                "class_names": names,
                "samples": list(zip(sample_ids, digests, labels.tolist(), splits, strict=True)),
            }
        ),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (`file#row`); each row group is read once."""
    decoded: dict[int, Image.Image | Exception] = {}
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, source in enumerate(sources):
        path, _, row = source.rpartition("#")
        wanted[path].append((int(row), position))
    for path, rows in wanted.items():
        try:
            images = _read_rows(path, config.image, [row for row, _ in rows])
        except (OSError, LookupError, pa.ArrowException) as error:  # it may have been written anew since
            images = [error] * len(rows)
        for (_, position), data in zip(rows, images, strict=True):
            decoded[position] = decode_image(data) if isinstance(data, bytes) else data
    return [decoded[position] for position in range(len(sources))]


def _read_rows(path: str, column: str, rows: Sequence[int]) -> list[bytes | Exception]:
    """The encoded images of some rows of a file, in their order."""
    data: dict[int, bytes | Exception] = {}
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        by_group: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            by_group[int(np.searchsorted(starts, row, side="right")) - 1].append(row)
        for group, members in by_group.items():
            if group >= len(sizes):
                data.update((row, IndexError(f"row {row} of {starts[-1]}")) for row in members)
                continue
            images = _row_group(path, os.stat(path).st_mtime_ns, group, column)
            for row in members:
                value = images[row - int(starts[group])].as_py()
                data[row] = value if value is not None else ValueError("the image is null")
    return [data[row] for row in rows]


@lru_cache(maxsize=1)
def _row_group(path: str, modified_ns: int, group: int, column: str) -> pa.ChunkedArray:
    """Encoded images of a row group. The last one is kept, since calls come in the order of the file."""
    with pq.ParquetFile(path) as file:
        return _bytes(file.read_row_group(group, columns=[column]).column(column))


def _files(path: str, where: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files."""
    given = given_path(path, where)
    if given.is_dir():
        visible = (
            p for p in given.rglob("*.parquet") if not any(s.startswith(".") for s in p.relative_to(given).parts)
        )
        files = sorted(file for file in visible if file.is_file())
        if not files:
            raise InputError(
                f"{where}: no *.parquet file in the folder; for folders of images use `kind: image_folder`"
            )
        return given, files
    if given.is_file():
        return given.parent, [given]
    if glob.has_magic(path):
        files = sorted(Path(file) for file in glob.glob(str(given), recursive=True) if Path(file).is_file())
        if not files:
            raise InputError(f"{where}: no file matches; give a parquet file, a folder of them, or a glob")
        depth = next(i for i, part in enumerate(given.parts) if glob.has_magic(part))
        return Path(*given.parts[:depth]), files
    raise InputError(f"{where}: no such file or folder; give a parquet file, a folder of them, or a glob")


def _scan(path: Path, name: str, config: Config, where: str) -> FileRows:
    """Labels, splits and image digests of a file, with its columns checked."""
    labels: list[pa.Array] = []
    splits: list[str] = []
    digests: list[str] = []
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = _check_columns(schema, name, config, where)
            for batch in file.iter_batches(SCAN_ROWS, columns=columns):
                found = [_bytes(batch.column(columns[0])), *(batch.column(column) for column in columns[1:])]
                for column, values in zip(columns, found, strict=True):
                    if values.null_count:
                        row = len(digests) + values.is_null().to_pylist().index(True)
                        raise InputError(f"{where}: column {column!r} is null in {name}#{row}; fill it or drop the row")
                digests += [hashlib.sha256(image).hexdigest() for image in found[0].to_pylist()]
                as_text = not pa.types.is_integer(schema.field(config.label).type)
                labels.append(found[1].cast(pa.string() if as_text else pa.int64()))
                splits += found[2].cast(pa.string()).to_pylist() if config.split else []
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: {name} cannot be read as parquet: {error}; write it again, or leave it out"
        ) from None
    joined = pa.concat_arrays(labels) if labels else pa.array([], pa.int64())
    names = hub_class_names(schema, config.label)
    return FileRows(name, path, joined, splits if config.split else None, digests, names)


def _check_columns(schema: pa.Schema, name: str, config: Config, where: str) -> list[str]:
    """The image, label and (where it is named) split column, each present and of a type that can be read."""
    wanted = {"image": config.image, "label": config.label} | ({"split": config.split} if config.split else {})
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
    return list(wanted.values())


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_image_type(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes(images: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The encoded images; null where the struct, or the bytes in it, are null."""
    return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images


def _given_splits(files: Sequence[FileRows], where: str) -> list[str]:
    """The split column, else the file names where they name more than one split, else "train" for every row."""
    given: list[str] = []
    named = {file.name: _split_of_name(file.name) for file in files}
    by_name = len(set(named.values())) > 1
    for file in files:
        if file.splits is not None:
            for row, value in enumerate(file.splits):
                split = SPLIT_NAMES.get(value.lower())
                if split is None:
                    raise InputError(
                        f"{where}: split {value!r} in {file.name}#{row} is not one; allowed: {', '.join(SPLIT_NAMES)}"
                    )
                given.append(split)
            continue
        split = named[file.name] if by_name else "train"
        if split is None:
            others = sorted({name for name in named.values() if name})
            raise InputError(
                f"{where}: {file.name} names no split while other files name {', '.join(others)}; rename it, name a "
                "`dataset.split` column, or give a glob that leaves it out"
            )
        given += [split] * len(file.labels)
    return given


def _split_of_name(name: str) -> str | None:
    """The split in a relative path: `train-00000-of-00002.parquet`, `data/test/0.parquet`."""
    for part in reversed(Path(name).with_suffix("").parts):
        found = SPLIT_NAMES.get(re.split(r"[-_.]", part, maxsplit=1)[0].lower())
        if found is not None:
            return found
    return None
