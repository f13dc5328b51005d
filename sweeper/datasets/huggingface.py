"""A dataset of the Hugging Face hub or a folder of one, read by the `datasets` library, class names included.

    name: uoft-cs/cifar10            a hub id; `config` and `revision` as there
    name: path/to/folder             an image folder, parquet files, or what `save_to_disk` wrote
    name: s3://bucket/prefix         parquet files as on the hub, always read as with `streaming: true`

Two ways of reading. As the library does by default, the data are brought whole into its cache (HF_HOME) as Arrow files
that are mapped into memory, or as the images of the folder itself; every node that decodes has to see these files under
the same path, as with any local folder. With `streaming: true` nothing is copied: the index reads the labels, and each
task, on whichever node, the row groups that it decodes, from the hub, the bucket or the disk. That needs parquet files,
as which the hub serves nearly every dataset (`revision: refs/convert/parquet`); there an image counts by its file's
sha256 on the hub and its row. The hub is asked for one commit, so that all nodes read the same.

No code comes along: the library runs no scripts any more, and of its readers only those for parquet, Arrow and image
folders are let in (others load pickles, for one).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from sweeper.datasets import (
    SPLIT_NAMES,
    SPLITS,
    DatasetIndex,
    Fractions,
    ImageSize,
    NumClasses,
    decode_image,
    given_path,
    image_folder,
    refusing,
    shorten,
)
from sweeper.datasets._arrow_files import image_row, open_table, scan_tables
from sweeper.datasets._label_column import FileRows
from sweeper.datasets._listing import Found, find, split_of_name
from sweeper.datasets._parquet_rows import decode_rows, scan
from sweeper.datasets._places import Disk, Place, Remote, is_remote
from sweeper.datasets._rows import index_of_rows
from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

HUB = "hf://datasets"
READERS = ("parquet", "arrow", "imagefolder")  # modules of `datasets.packaged_modules`
_CACHE = "cache"  # another one, for what the library has made Arrow files of before, when the hub is away


class Config(Settings):
    """`splits` names the data's own split for train, val and test; left out, they are found by their names.

    A val or test that is missing is taken from train. `num_classes`, where it is given, is checked.
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"num_classes"})

    kind: Literal["huggingface"] = "huggingface"
    name: Annotated[str, Field(min_length=1)]
    config: str | None = None
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    splits: dict[Literal["train", "val", "test"], str] | None = None
    streaming: bool = False
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    num_classes: NumClasses = None

    @field_validator("splits")
    @classmethod
    def _name_a_train_split(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and ("train" not in value or len({*value.values()}) < len(value)):
            raise ValueError("needs `train`, and another split of the data for each of train, val and test")
        return value


def index(config: Config, seed: int) -> DatasetIndex:
    """Labels and class names, and a hash of every image's bytes (`streaming: true`: the hub's own).

    Raises:
        InputError: no such dataset, column or split, files of another form, a class with too few images.
        RunFailed: the hub can not be reached.
    """
    where = f"dataset.name: {one_line(config.name)}"
    columns = {"image": config.image, "label": config.label}
    with refusing(where):
        if is_remote(config.name):
            place, files = find(config.name, ".parquet", where)
            by_split: dict[str, list[Found]] = defaultdict(list)
            is_named = any(split_of_name(file.name) for file in files)
            for file in files:
                by_split[split_of_name(file.name) or (Path(file.name).stem if is_named else "train")].append(file)
            rows, sources = _scan_parquet("parquet", place, by_split, columns, config, where)
        else:
            given = given_path(config.name, where)
            home = given.resolve() if given.exists() else None  # as the library does
            if home is not None and _is_saved(home):
                rows, sources = _scan_arrow(_saved(home, where), columns, config, [home], where)
            else:
                rows, sources = _scan_loaded(str(home or config.name), home, columns, config, where)
    return index_of_rows(rows, sources, None, config.num_classes, config.fractions, seed, where)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources`: a row of an Arrow or parquet file, or a file."""
    by_form: dict[str, list[int]] = defaultdict(list)
    for position, source in enumerate(sources):
        by_form[source.partition(":")[0]].append(position)
    decoded: dict[int, Image.Image | Exception] = {}
    for form, positions in by_form.items():
        chosen = [sources[position].partition(":")[2] for position in positions]
        if form == "arrow":
            images = [_decode_row(source, config.image) for source in chosen]
        elif form == "file":
            images = [image_folder.decode_file(source) for source in chosen]
        else:
            images = decode_rows(HUB if form == "hub" else config.name, config.image, chosen)
        decoded.update(zip(positions, images, strict=True))
    return [decoded[position] for position in range(len(sources))]


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """What is known about the classes without the data."""
    return config.num_classes


def _decode_row(source: str, column: str) -> Image.Image | Exception:
    path, _, row = source.rpartition("#")
    try:
        return decode_image(image_row(_table(path), column, int(row)))
    except (OSError, LookupError, pa.ArrowException) as error:
        return error


@lru_cache(maxsize=8)
def _table(path: str) -> pa.Table:
    return open_table(path)


def _scan_loaded(
    name: str, home: Path | None, columns: Mapping[str, str], config: Config, where: str
) -> tuple[list[FileRows], list[str]]:
    """By `datasets.load_dataset`, or, streaming, from the files that it would load."""
    import datasets
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    with _told(where):
        builder = datasets.load_dataset_builder(name, config.config, revision=config.revision)
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in (*READERS, _CACHE):
        raise InputError(
            f"{where}: its files are read by datasets' {reader!r}; allowed: {', '.join(READERS)}; try "
            "`revision: refs/convert/parquet`, or `kind: webdataset` for tar shards"
        )
    if not config.streaming:
        with _told(where):
            loaded = datasets.load_dataset(name, config.config, revision=config.revision)
        roots = [home] if home else [Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
        return _scan_arrow(_files_of(loaded, where), columns, config, roots, where)
    if reader != "parquet":
        raise InputError(
            f"{where}: streaming reads parquet files, and these are read by {reader!r}; "
            "leave `dataset.streaming` out, or try `revision: refs/convert/parquet`"
        )
    form, place = ("parquet", Disk()) if home else ("hub", Remote(HUB, where))
    by_split = {}
    for split, files in builder.config.data_files.items():
        by_split[str(split)] = [_found(str(file), home, where) for file in sorted(files)]
    return _scan_parquet(form, place, by_split, columns, config, where)


def _found(file: str, home: Path | None, where: str) -> Found:
    """A file by its name within the folder, or within the hub's repository of whatever commit.

    Raises:
        InputError: it lies elsewhere, as the README of a dataset may say.
    """
    plain = Path(os.path.normpath(file))
    if home is not None and plain.is_relative_to(home):
        return Found(plain.relative_to(home).as_posix(), str(plain))
    repository, _, rest = file.partition("@")
    if home is not None or not repository.startswith(f"{HUB}/") or "/" not in rest:
        raise InputError(f"{where}: its file {one_line(file)} lies elsewhere; leave `dataset.streaming` out")
    return Found(rest.partition("/")[2], file.removeprefix("hf://"))


def _scan_parquet(
    form: str,
    place: Place,
    by_split: Mapping[str, Sequence[Found]],
    columns: Mapping[str, str],
    config: Config,
    where: str,
) -> tuple[list[FileRows], list[str]]:
    chosen = _chosen(list(by_split), config, where)
    rows = []
    for theirs, ours in chosen.items():
        for file in scan(place, by_split[theirs], columns, where):
            rows.append(replace(file, splits=[ours] * len(file.labels)))
    return rows, [f"{form}:{file.source}#{row}" for file in rows for row in range(len(file.labels))]


def _scan_arrow(
    files: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    config: Config,
    roots: Sequence[Path],
    where: str,
) -> tuple[list[FileRows], list[str]]:
    chosen = _chosen(list(files), config, where)
    rows: list[FileRows] = []
    sources: list[str] = []
    for theirs, ours in chosen.items():
        found, where_they_lie = scan_tables(theirs, files[theirs], columns, roots, where)
        rows.append(replace(found, splits=[ours] * len(found.labels)))
        sources += where_they_lie
    return rows, sources


def _chosen(names: Sequence[str], config: Config, where: str) -> dict[str, str]:
    """The data's splits that are used, and what each is to us."""
    if config.splits is not None:
        absent = sorted(set(config.splits.values()) - set(names))
        if absent:
            raise InputError(f"{where}: no split {shorten(absent)} (`dataset.splits`); it has {shorten(names)}")
        given = {str(ours): theirs for ours, theirs in config.splits.items()}
        return {given[ours]: ours for ours in SPLITS if ours in given}
    if len(names) == 1:
        return {names[0]: "train"}
    found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if "train" not in found.values() or len({*found.values()}) < len(found):
        raise InputError(
            f"{where}: its splits are {shorten(names)}; say which is which with `dataset.splits: {{train: ...}}`"
        )
    return dict(sorted(found.items(), key=lambda item: SPLITS.index(item[1])))


def _is_saved(home: Path) -> bool:
    return any((home / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved(home: Path, where: str) -> dict[str, list[str]]:
    """The Arrow files of each split of what `save_to_disk` wrote."""
    import datasets

    with _told(where):
        found = _files_of(datasets.load_from_disk(str(home)), where)
    for file in (file for files in found.values() for file in files):
        if not Path(os.path.normpath(file)).is_relative_to(home):
            raise InputError(f"{where}: its file {one_line(file)} lies elsewhere; save it with its files")
    return found


def _files_of(loaded: Any, where: str) -> dict[str, list[str]]:
    by_split = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    found = {}
    for split, dataset in by_split.items():
        found[str(split)] = [entry["filename"] for entry in dataset.cache_files]
        if dataset._indices is not None or sum(open_table(file).num_rows for file in found[str(split)]) != len(dataset):
            raise InputError(f"{where}: split {split} is a selection of its rows; write it with save_to_disk again")
    return found


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What the library says as an error of ours."""
    try:
        yield
    except SweeperError:
        raise
    except Exception as error:  # nearly any type: the hub's client, fsspec, Arrow, the library's own
        kinds = {kind.__name__ for kind in type(error).__mro__}
        why = f"{type(error).__name__}: {one_line(str(error))}"
        if kinds & {"ConnectionError", "HTTPError", "OfflineModeIsEnabled", "TransportError", "TimeoutError"}:
            hint = "check the network, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE"
            raise RunFailed(f"{where}: the hub can not be reached: {why}; {hint}") from error
        hint = "give a hub id (owner/name) or a folder that is there"
        raise InputError(f"{where}: cannot be loaded: {why}; {hint}") from error
