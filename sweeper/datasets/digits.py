"""Handwritten digits that scikit-learn ships: 1,797 real 8x8 images in ten classes, no download.

The images are the test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin & Kaynak 1998). One
fixed split, the same for every sweep, because the embedded weights were trained on a part of it:

    foundation   1,000 images   seen by the embedded teachers and generator only; stands in for web-scale data
    train          150 images   the pool from which a sweep's few labelled images are drawn
    val            200 images
    test           447 images

A sweep's seed chooses which `train_per_class` images of the pool carry a label, and nothing else. The draw of a larger
`train_per_class` contains that of a smaller one, so that learning curves over it are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from sweeper.datasets import DatasetIndex, ImageSize
from sweeper.registry import Settings
from sweeper.views import counter_uniform

SPLIT_SEED = 1797
NUM_FOUNDATION, NUM_TRAIN_POOL, NUM_VAL = 1000, 150, 200
MAX_LEVEL = 16  # the pixels count the dark cells of a 4x4 block
CLASS_NAMES = tuple("0123456789")


class Config(Settings):
    """`train_per_class` labelled training images a class, resized to `image_size` squares."""

    kind: Literal["digits"] = "digits"
    train_per_class: Annotated[int, Field(ge=1, le=10)] = 5
    image_size: ImageSize = 32


def index(config: Config, seed: int) -> DatasetIndex:
    """The task's images; those of the foundation pool never appear."""
    images, labels = _digits()
    split = _fixed_split()
    pool = split["train"][np.argsort(counter_uniform(seed, split["train"]))]
    train = [pool[labels[pool] == label][: config.train_per_class] for label in range(len(CLASS_NAMES))]
    rows = {"train": np.sort(np.concatenate(train)), "val": split["val"], "test": split["test"]}
    order = np.concatenate(list(rows.values()))
    splits = [name for name, members in rows.items() for _ in members]
    digest = hashlib.sha256(images[order].tobytes() + labels[order].tobytes() + " ".join(splits).encode())
    return DatasetIndex(
        class_names=CLASS_NAMES,
        sample_ids=[f"digits-{row:04d}" for row in order],
        labels=labels[order],
        splits=splits,
        sources=[f"digits:{row}" for row in order],
        content=digest.hexdigest(),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images of 8x8 pixels, in the order of `sources` (`digits:<row of load_digits>`)."""
    images, _ = _digits()
    decoded: list[Image.Image | Exception] = []
    for source in sources:
        try:
            row = int(source.removeprefix("digits:"))
            decoded.append(Image.fromarray(images[range(len(images))[row]]))
        except (ValueError, IndexError) as error:
            decoded.append(error)
    return decoded


def foundation() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The pool of the embedded teachers and generator: uint8 [1000, 8, 8, 3] images and int64 [1000] labels."""
    images, labels = _digits()
    rows = foundation_rows()
    return images[rows], labels[rows]


def foundation_rows() -> npt.NDArray[np.int64]:
    """Rows of `load_digits` that belong to the foundation pool, sorted."""
    return _fixed_split()["foundation"]


def images_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """uint8 [len(rows), 8, 8, 3]."""
    found: npt.NDArray[np.uint8] = _digits()[0][rows]
    return found


@cache
def _digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images as uint8 [1797, 8, 8, 3] and their int64 [1797] labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / MAX_LEVEL)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), data.target.astype(np.int64)


@cache
def _fixed_split() -> dict[str, npt.NDArray[np.int64]]:
    """Sorted rows of each part.

    Every class is shuffled and spread evenly over [0, 1); cutting that order anywhere leaves stratified parts.
    """
    _, labels = _digits()
    place = np.empty(len(labels))
    for label in range(len(CLASS_NAMES)):
        members = np.flatnonzero(labels == label)
        shuffled = members[np.argsort(counter_uniform(SPLIT_SEED, members))]
        place[shuffled] = (np.arange(len(members)) + 0.5) / len(members)
    cuts = np.cumsum([NUM_FOUNDATION, NUM_TRAIN_POOL, NUM_VAL])
    parts = np.split(np.argsort(place, kind="stable"), cuts)
    return {name: np.sort(part) for name, part in zip(("foundation", "train", "val", "test"), parts, strict=True)}
