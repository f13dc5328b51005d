"""WebDataset shards: tar files whose members of one name (`000017.jpg`, `000017.cls`) are a sample.

    shards/train-{000..010}.tar  shards/val-000.tar      splits by the shards' names, as with parquet files
    shards/classes.txt                                   class names, one a line, by number (or `classnames.txt`)

A sample's name is its path up to the first dot of the file name, and its members stand side by side. The label is the
text of its `.cls` member, or a value of its `.json` (`label: json.KEY`): a number, else a name. The index passes over
each shard once, from front to back, and keeps where the images lie; a task reads these bytes and nothing else, from a
disk or from a URI (`s3://bucket/train-{000..010}.tar`; the pass transfers each shard, and keeps none). Nothing is
unpacked to a disk, so that names lead nowhere. Compressed tars have no such places and are refused. On a disk an image
counts by its bytes, elsewhere by its shard's ETag and its own name (`_places.py`).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from sweeper.datasets import (
    DatasetIndex,
    Fractions,
    ImageSize,
    NumClasses,
    decode_image,
    refusing,
    shorten,
)
from sweeper.datasets._label_column import FileRows, distinct
from sweeper.datasets._listing import Found, find
from sweeper.datasets._places import Piece, Place, Remote, hidden, place_of
from sweeper.datasets._rows import index_of_rows
from sweeper.datasets._tar import Member, members
from sweeper.errors import InputError
from sweeper.registry import Settings
from sweeper.storage import sha256_of
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_LABEL_BYTES = 2**20  # of a .cls or .json member
SCAN_THREADS = 8  # shards at once, of which each takes some megabytes
_NAMES_FILES = ("classes.txt", "classnames.txt")


class Config(Settings):
    """`path` is a shard, a folder, a glob or a range; `label` is `cls` or `json.KEY` (`json.a.b` for nested ones).

    `class_names` name the labels 0..K-1; `num_classes`, where it is given, is checked.
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"num_classes"})

    kind: Literal["webdataset"] = "webdataset"
    path: Annotated[str, Field(min_length=1)]
    label: str = "cls"
    class_names: tuple[str, ...] | None = None
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    num_classes: NumClasses = None

    @field_validator("label")
    @classmethod
    def _says_where(cls, value: str) -> str:
        first, *keys = value.split(".")
        if not first or not all(keys) or (first == "json") != bool(keys):
            raise ValueError(f"{value!r} is neither a member's ending, such as cls, nor json.KEY")
        return value

    @field_validator("class_names")
    @classmethod
    def _names_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return distinct(value)


@dataclass
class _Sample:
    """The members of one name, as far as they are read."""

    name: str
    members: list[str] = field(default_factory=list)
    image: tuple[int, int] | None = None  # first byte in the shard, bytes
    digest: str = ""
    label: str | None = None


@dataclass(frozen=True)
class _Shard:
    rows: FileRows
    samples: list[_Sample]


def index(config: Config, seed: int) -> DatasetIndex:
    """Pass over every shard: labels, where the images lie, and a hash of their bytes.

    Raises:
        InputError: no such shard, one that is cut short, compressed or no tar, a sample without an image or a label,
            two samples of one name, a class with too few images.
    """
    where = f"dataset.path: {one_line(config.path)}"
    with refusing(where):
        place, files = find(config.path, ".tar", where)
        tags: list[str | None] = [None] * len(files)
        if isinstance(place, Remote):
            tags = list(place.digests([file.source[len(place.root) + 1 :] for file in files]))
        with ThreadPoolExecutor(SCAN_THREADS) as threads:
            shards = list(threads.map(partial(_scan_patiently, place, config, where), files, tags))
        listed = _listed_names(place, config, files, where)
    rows = _typed([shard.rows for shard in shards], listed)
    sources = [_source(shard.rows.source, sample) for shard in shards for sample in shard.samples]
    return index_of_rows(rows, sources, config.class_names, config.num_classes, config.fractions, seed, where)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (`shard#first byte+bytes`)."""
    pieces: list[Piece] = []
    for source in sources:
        shard, _, span = source.rpartition("#")
        start, _, size = span.partition("+")
        pieces.append((shard, int(start), int(size)))
    found = place_of(config.path).read(pieces)
    return [decode_image(data) if isinstance(data, bytes) else data for data in found]


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """What is known about the classes without the data."""
    return config.class_names or config.num_classes


def _source(shard: str, sample: _Sample) -> str:
    assert sample.image is not None
    return f"{shard}#{sample.image[0]}+{sample.image[1]}"


def _scan_patiently(place: Place, config: Config, where: str, file: Found, tag: str | None) -> _Shard:
    return place.attempt(lambda: _scan(place, file, tag, config, where))


def _scan(place: Place, file: Found, tag: str | None, config: Config, where: str) -> _Shard:
    """The samples of one shard; `tag` stands for its contents where its bytes are not hashed."""
    samples: list[_Sample] = []
    seen: set[str] = set()
    try:
        with place.stream(file.source) as stream:
            for member in members(stream):
                name, extension = _parts_of_name(member.name)
                if not extension:
                    continue
                if not samples or samples[-1].name != name:
                    _check_new(name, seen, file, where)
                    samples.append(_Sample(name))
                _take(samples[-1], member, extension, tag, config, f"{where}: {file.name}: {one_line(member.name)}")
    except tarfile.TarError as error:
        raise InputError(
            f"{where}: {file.name} cannot be read as an uncompressed tar: {one_line(str(error))}; "
            "fetch or write it again, or leave it out"
        ) from None
    for sample in samples:
        _check_whole(sample, config, f"{where}: {file.name}: sample {one_line(sample.name)}")
    labels = pa.array([sample.label for sample in samples], pa.string())
    digests = [sample.digest for sample in samples]
    ids = tuple(sample.name for sample in samples)
    return _Shard(FileRows(file.name, file.source, labels, None, digests, None, ids), samples)


def _parts_of_name(path: str) -> tuple[str, str]:
    """`a/b.c/0017.seg.png` is the member `seg.png` of the sample `a/b.c/0017`; no member of what is passed over."""
    folder, slash, base = path.rpartition("/")
    name, _, extension = base.partition(".")
    return ("", "") if hidden(base) or base.startswith("__") else (folder + slash + name, extension.lower())


def _check_new(name: str, seen: set[str], file: Found, where: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {file.name}: the name {name!r} is not valid UTF-8; write the shard again") from None
    if name in seen:
        raise InputError(
            f"{where}: {file.name}: sample {one_line(name)} begins twice; the members of a sample stand side by side"
        )
    seen.add(name)


def _take(sample: _Sample, member: Member, extension: str, tag: str | None, config: Config, where: str) -> None:
    """Read of a member what the index needs."""
    sample.members.append(extension)
    if extension in IMAGES:
        if sample.image is not None:
            raise InputError(f"{where}: a second image of its sample; keep one ({', '.join(IMAGES)})")
        sample.image = (member.start, member.size)
        sample.digest = sha256_of(member.stream) if tag is None else f"{tag}#{sample.name}"
    elif extension == config.label.partition(".")[0]:
        if member.size > MAX_LABEL_BYTES:
            raise InputError(f"{where}: {member.size:,} bytes, which is no label")
        sample.label = _label(member.stream.read(), config.label, where)


def _label(data: bytes, label: str, where: str) -> str:
    """The label as text."""
    _, *keys = label.split(".")
    try:
        value: Any = data.decode("utf-8").strip()
        for step, key in enumerate(keys):
            value = (json.loads(value) if step == 0 else value)[key]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where}: has no {'.'.join(keys) or 'text'} ({type(error).__name__}: {one_line(str(error), 80)}); "
            "set `dataset.label`"
        ) from None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(f"{where}: the label is {one_line(repr(value), 80)}; it must be a whole number or a name")
    return str(value)


def _check_whole(sample: _Sample, config: Config, where: str) -> None:
    has = f"it has {shorten(sorted(sample.members))}"
    if sample.image is None:
        raise InputError(f"{where} has no image ({', '.join(IMAGES)}); {has}")
    if sample.label is None:
        hint = "; set `dataset.label: json.KEY`" if "json" in sample.members else ""
        raise InputError(f"{where} has no .{config.label.partition('.')[0]}; {has}{hint}")


def _typed(files: Sequence[FileRows], listed: tuple[str, ...] | None) -> list[FileRows]:
    """Labels as numbers if all of them are, with the names of `classes.txt` for these."""
    texts = [file.labels.to_pylist() for file in files]
    if all(text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 for some in texts for text in some):
        arrays = [pa.array([int(text) for text in some], pa.int64()) for some in texts]
        return [replace(file, labels=a, class_names=listed) for file, a in zip(files, arrays, strict=True)]
    return list(files)


def _listed_names(place: Place, config: Config, files: Sequence[Found], where: str) -> tuple[str, ...] | None:
    """The names in `classes.txt` in the folder that the shards' names are relative to."""
    if config.class_names is not None:
        return None
    for name in _NAMES_FILES:
        beside = files[0].source.removesuffix(files[0].name) + name
        found = place.read([(beside, 0, None)])[0]
        if isinstance(found, OSError) and not isinstance(found, FileNotFoundError):
            raise found
        if isinstance(found, bytes):
            names = tuple(line.strip() for line in found.decode("utf-8", "replace").splitlines() if line.strip())
            try:
                return distinct(names)
            except ValueError as error:
                raise InputError(f"{where}: {name}: {error}") from None
    return None
