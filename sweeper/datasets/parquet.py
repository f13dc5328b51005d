"""Parquet files with an image column (bytes, or the hub's {bytes, path} struct) and a label column.

Labels are integers or names. Names of integer labels 0..K-1 come from `class_names`, else from the ClassLabel that the
`datasets` library writes into the schema (of which only the classes count that have a row); else they are the numbers
themselves, which may have gaps. Splits come from the `split` column, else from
file names as on the hub (`train-00000-of-00002.parquet`), else everything is train; a missing val or test is taken
from train by the seed.

The files may lie at a URI (`s3://bucket/prefix`). A task reads one row group at a time and no node holds more; there an
image counts by its file's ETag and its row, so that the index reads no image (`_places.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from sweeper.datasets import DatasetIndex, Fractions, ImageSize, NumClasses, refusing
from sweeper.datasets._label_column import distinct
from sweeper.datasets._listing import find
from sweeper.datasets._parquet_rows import decode_rows, scan
from sweeper.datasets._rows import index_of_rows
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image


class Config(Settings):
    """`path` is a file, a folder, a glob, or `train-{00..10}.parquet`; `fractions` apply to the missing splits.

    `num_classes`, where it is given, is checked.
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"num_classes"})

    kind: Literal["parquet"] = "parquet"
    path: Annotated[str, Field(min_length=1)]
    image: str = "image"
    label: str = "label"
    split: str | None = None
    class_names: tuple[str, ...] | None = None
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    num_classes: NumClasses = None

    @field_validator("class_names")
    @classmethod
    def _names_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return distinct(value)


def index(config: Config, seed: int) -> DatasetIndex:
    """Read labels and splits, and hash the bytes of every image.

    Raises:
        InputError: no such file, a column missing or of another type, a null, a negative label, a class without a row,
            an unknown split, a class with too few images.
    """
    where = f"dataset.path: {one_line(config.path)}"
    columns = {"image": config.image, "label": config.label} | ({"split": config.split} if config.split else {})
    with refusing(where):
        files = scan(*find(config.path, ".parquet", where), columns, where)
    sources = [f"{file.source}#{row}" for file in files for row in range(len(file.labels))]
    return index_of_rows(files, sources, config.class_names, config.num_classes, config.fractions, seed, where)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (`file#row`); each row group is read once."""
    return decode_rows(config.path, config.image, sources)


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """What is known about the classes without the data."""
    return config.class_names or config.num_classes
