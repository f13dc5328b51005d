"""A look at a labelled dataset before anything is built: classes, sizes, colours, what is broken or there twice.

Every image is decoded once, or so many of a large set that this stays a matter of minutes, and only figures of it are
kept. What counts as an image, a class and a split is the dataset kind's own `index`: a survey sees what a run will see.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeper import duplicates, registry
from sweeper.datasets import SPLIT_NAMES, SPLITS, DatasetIndex, given_path
from sweeper.datasets._places import is_remote
from sweeper.pixels import why_unreadable
from sweeper.registry import Settings

if TYPE_CHECKING:
    from PIL import Image

MOST_LOOKED = 5_000  # images; of more, so many are drawn evenly
CHUNK = 8  # full-size images that a thread holds at once
GREY_SIDE = 32  # an image is grey if its small version is
FILES = {".parquet": "parquet", ".tar": "webdataset"}  # what a folder may hold instead of images


@dataclass(frozen=True, kw_only=True)
class Look:
    """One image: its sides in pixels, whether it is grey, and a digest of its pixels; or why it can not be read."""

    width: int = 0
    height: int = 0
    is_grey: bool = False
    digest: bytes = bytes(duplicates.DIGEST_BYTES)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was seen.

    Attributes:
        dataset: the `Config` that a space file will have, but for its size.
        looks: by the number of the row in `index`; all rows, or `MOST_LOOKED` of them.
        drawn: splits that are not in the data and are taken from train.
    """

    dataset: Settings
    index: DatasetIndex
    looks: dict[int, Look]
    drawn: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every image was looked at."""
        return len(self.looks) == len(self.index)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Names of images that can not be decoded, and why."""
        return [(self.index.sample_ids[row], look.error) for row, look in self.looks.items() if look.error]

    @property
    def formats(self) -> dict[str, int]:
        """Images by the ending of their name; empty where images lie in other files."""
        names = self.index.sample_ids if _is_folder(self.dataset) else ()
        return dict(Counter(Path(name).suffix.lower() for name in names).most_common())

    def sizes(self, split: str = "") -> np.ndarray:
        """Width and height of the images of a split, or of all, by their shorter side: [N, 2]."""
        seen = [
            (look.width, look.height)
            for row, look in self.looks.items()
            if not look.error and split in ("", self.index.splits[row])
        ]
        return np.array(sorted(seen, key=lambda size: (min(size), max(size))), dtype=np.int64).reshape(-1, 2)

    @property
    def short_side(self) -> int:
        """The median of the shorter side, in pixels; 0 where nothing can be read."""
        sides = self.sizes().min(axis=1, initial=np.iinfo(np.int64).max)
        return int(np.median(sides)) if len(sides) else 0

    def class_counts(self, split: str) -> Counter[str]:
        """Images of each class in a split, of all classes."""
        counts = Counter(dict.fromkeys(self.index.class_names, 0))
        rows = zip(self.index.labels.tolist(), self.index.splits, strict=True)
        counts.update(self.index.class_names[label] for label, at in rows if at == split)
        return counts

    @property
    def shared(self) -> list[dict[str, Any]]:
        """Images that lie in two splits, as `duplicates.across_splits` tells of them."""
        nothing = Look()
        digests = b"".join(self.looks.get(row, nothing).digest for row in range(len(self.index)))
        return duplicates.across_splits(digests, self.index)

    def twice(self, *, in_one_class: bool) -> list[tuple[str, ...]]:
        """Names of images with the same pixels, whichever splits they are in: of one class, or of several."""
        groups: dict[bytes, list[int]] = {}
        for row, look in self.looks.items():
            if not look.error:
                groups.setdefault(look.digest, []).append(row)
        many = [rows for rows in groups.values() if len(rows) > 1]
        kept = [rows for rows in many if (len({int(self.index.labels[row]) for row in rows}) == 1) == in_one_class]
        return sorted(tuple(sorted(self.index.sample_ids[row] for row in rows)) for rows in kept)


def recognise(place: str) -> Settings:
    """The dataset kind that a folder or file is: parquet files or tar shards where there are any, else class folders.

    Raises:
        InputError: not a path.
    """
    endings = [Path(place).suffix.lower()]
    if not is_remote(place):
        path = given_path(place, "FOLDER")
        place = str(path.absolute())
        if path.is_dir():
            endings = sorted({child.suffix.lower() for child in path.iterdir() if not child.name.startswith(".")})
    kind = next((FILES[ending] for ending in endings if ending in FILES), "image_folder")
    where = "root" if kind == "image_folder" else "path"
    return registry.config_class("datasets", kind).model_validate({"kind": kind, where: place})


def listed(dataset: Settings, seed: int) -> DatasetIndex:
    """What is there, as a run would find it; nothing is decoded.

    Args:
        dataset: a `Config` of a kind in `sweeper/datasets`.
        seed: of the space file, which decides the splits that the data does not have.

    Raises:
        InputError: the dataset is none, as its kind's `index` says.
    """
    found: DatasetIndex = registry.load("datasets", dataset.kind).index(dataset, seed)  # type: ignore[attr-defined]
    return found


def survey(dataset: Settings, index: DatasetIndex, progress: Callable[[int], None] = lambda done: None) -> Survey:
    """Look at the images of a dataset; `progress` is told how many more were looked at."""
    module = registry.load("datasets", dataset.kind)  # type: ignore[attr-defined]
    rows = _evenly(len(index), MOST_LOOKED)
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    looks: dict[int, Look] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for chunk, found in zip(chunks, threads.map(partial(_look_at, module, dataset, index), chunks), strict=True):
            looks.update(zip(chunk, found, strict=True))
            progress(len(chunk))
    return Survey(dataset=dataset, index=index, looks=looks, drawn=_drawn(dataset, index))


def _evenly(count: int, most: int) -> list[int]:
    return [number * count // most for number in range(most)] if count > most else list(range(count))


def _look_at(module: Any, dataset: Settings, index: DatasetIndex, rows: Sequence[int]) -> list[Look]:
    images = module.decode(dataset, [index.sources[row] for row in rows])
    return [Look(error=why_unreadable(image)) if isinstance(image, Exception) else _of(image) for image in images]


def _of(image: Image.Image) -> Look:
    small = np.asarray(image.resize((GREY_SIDE, GREY_SIDE)))
    is_grey = bool((small.max(axis=2) == small.min(axis=2)).all())
    digest = duplicates.digest(f"{image.width} {image.height} ".encode() + image.tobytes())
    return Look(width=image.width, height=image.height, is_grey=is_grey, digest=digest)


def _drawn(dataset: Settings, index: DatasetIndex) -> tuple[str, ...]:
    """Splits whose images do not lie in a folder of that name; nothing is known of other kinds than folders."""
    if not _is_folder(dataset):
        return ()
    lies = [SPLIT_NAMES.get(name.partition("/")[0].lower()) for name in index.sample_ids]
    strangers = {split for split, folder in zip(index.splits, lies, strict=True) if folder != split}
    return tuple(split for split in SPLITS[1:] if split in strangers)


def _is_folder(dataset: Settings) -> bool:
    """Whether its samples are files of their own, which other kinds' names do not tell of."""
    return hasattr(dataset, "root")
