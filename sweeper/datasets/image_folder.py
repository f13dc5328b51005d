"""A folder of your own images: one sub-folder a class, with or without train/val/test folders above.

    root/cat/1.jpg                                      split by the seed, each class alike
    root/train/cat/1.jpg  root/val/cat/2.jpg  ...       your splits; a missing val or test is taken from train

Class names are the sorted names of the (training) class folders. Images may lie deeper inside a class folder; hidden
files and files with other extensions are passed over. `valid` and `validation` are read as val.

`root` may be a URI (`s3://bucket/prefix`): the driver lists names and ETags, a task reads the images that it decodes,
and no node holds more. There an image counts by its ETag and size (`_places.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from sweeper.datasets import (
    SPLIT_NAMES,
    DatasetIndex,
    Fractions,
    ImageSize,
    NumClasses,
    _official_splits,
    check_num_classes,
    complete_splits,
    decode_image,
    refusing,
    shorten,
)
from sweeper.datasets._folders import Folder, check_file, open_folder
from sweeper.datasets._places import is_remote, place_of
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def _with_dots(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError(f"needs at least one, such as {EXTENSIONS[0]}")
    return tuple("." + extension.lower().lstrip(".") for extension in value)


Extensions = Annotated[tuple[str, ...], AfterValidator(_with_dots)]


class Config(Settings):
    """`root` is the folder; `fractions` apply to the splits that it does not have.

    `splits: mit67` or `cub200` reads the official split files of these sets, which lie in `root` with the images
    (`_official_splits.py`). `num_classes`, where it is given, is checked.
    """

    # Which splits and classes come out of it is part of the content already.
    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"splits", "num_classes"})

    kind: Literal["image_folder"] = "image_folder"
    root: Annotated[str, Field(min_length=1)]
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    extensions: Extensions = EXTENSIONS
    splits: _official_splits.Official | None = None
    num_classes: NumClasses = None


def index(config: Config, seed: int) -> DatasetIndex:
    """List, label and hash every image.

    Raises:
        InputError: no such folder, no class folders, fewer than two classes, a class with too few images, a class that
            train does not have, split folders mixed with others, split files that do not fit the images.
    """
    where = f"dataset.root: {one_line(config.root)}"
    with refusing(where):
        folder = open_folder(config.root, config.extensions, where, "give a folder of class folders")
        if config.splits is None:
            names, files = _by_folders(folder, config, where)
        else:
            names, files = _official_splits.read(config.splits, folder, where)
    check_num_classes(names, config.num_classes, where)
    files.sort()
    sample_ids = [file[0] for file in files]
    labels = np.asarray([file[1] for file in files], dtype=np.int64)
    splits = complete_splits([file[2] for file in files], labels, config.fractions, seed, names, where)
    with refusing(where):
        digests = folder.digests(sample_ids)
    samples = list(zip(sample_ids, digests, labels.tolist(), splits, strict=True))
    content = fingerprint({"class_names": names, "samples": samples})
    return DatasetIndex(tuple(names), sample_ids, labels, splits, list(map(folder.source, sample_ids)), content)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources`; an unreadable one is its exception."""
    return decode_files(config.root, sources)


def decode_files(root: str, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """The images of a folder that `root` names, on a disk (absolute paths) or by a URI (paths of its filesystem)."""
    if not is_remote(root):
        return [decode_file(source) for source in sources]
    found = place_of(root).read([(source, 0, None) for source in sources])
    return [decode_image(data) if isinstance(data, bytes) else data for data in found]


def decode_file(path: str) -> Image.Image | Exception:
    """One image of a disk, or why it can not be read."""
    try:
        check_file(path)
        data = Path(path).read_bytes()
    except OSError as error:
        return error
    return decode_image(data)


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """What is known about the classes without the data."""
    return config.num_classes


def _by_folders(folder: Folder, config: Config, where: str) -> tuple[list[str], list[tuple[str, int, str]]]:
    """Class names, and each image with its label and split."""
    parts = _split_folders(folder, config, where)
    names = _class_names(folder, parts, config, where)
    numbers = {name: label for label, name in enumerate(names)}
    return names, [
        (file, numbers[_base(child)], split)
        for split, part in (parts or {"train": ""}).items()
        for child in folder.subfolders(part)
        for file in folder.images_below(child)
    ]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _split_folders(folder: Folder, config: Config, where: str) -> dict[str, str]:
    """The folder of each split that the root has; empty when its sub-folders are the classes.

    A folder named like a split counts as one where it holds folders and no image of its own: "train" may be a class
    of a set of vehicles, and then it holds images.
    """
    found: dict[str, str] = {}
    others = []
    for child in folder.subfolders():
        split = SPLIT_NAMES.get(child.lower())
        if split is None or not folder.subfolders(child) or folder.has_direct_image(child):
            others.append(child)
        elif split in found:
            raise InputError(f"{where}: both {found[split]} and {child} hold the split {split!r}; keep one")
        else:
            found[split] = child
    if not found:
        return {}
    if others:
        empty = " (a split folder needs class folders inside)" if {o.lower() for o in others} & set(SPLIT_NAMES) else ""
        raise InputError(
            f"{where}: the split folders {', '.join(found.values())} lie beside {shorten(others)}{empty}; "
            "have either split folders or class folders there, and move the rest away"
        )
    if "train" not in found:
        raise InputError(f"{where}: found {', '.join(found.values())} but no train folder; add train/")
    for split, part in found.items():
        if not any(True for child in folder.subfolders(part) for _ in folder.images_below(child)):
            raise InputError(
                f"{where}: the folder {part} holds no image ({', '.join(config.extensions)}); "
                f"add some, or remove it{'' if split == 'train' else f' to have {split} split off train'}"
            )
    return found


def _class_names(folder: Folder, parts: dict[str, str], config: Config, where: str) -> list[str]:
    """Sorted names of the class folders of all splits together; that train has each of them is checked later."""
    children = [child for part in list(parts.values()) or [""] for child in folder.subfolders(part)]
    names = sorted(set(map(_base, children)))
    train = parts.get("train", "")
    if not names:
        hint = "expected one sub-folder a class, with images inside"
        if folder.has_direct_image():
            raise InputError(
                f"{where}: images lie directly in the folder and have no class; {hint}: sort them into folders"
            )
        raise InputError(f"{where}: no sub-folders; {hint}")
    if not any(True for name in names for _ in folder.images_below(f"{train}/{name}" if train else name)):
        seen = shorten(folder.suffixes_below(train)) or "no file at all"
        raise InputError(
            f"{where}: no image in {shorten(names)}; found {seen}, "
            f"allowed are {', '.join(config.extensions)} (`dataset.extensions`)"
        )
    if len(names) < 2:
        raise InputError(f"{where}: one class only ({names[0]}); a classifier needs at least two class folders")
    return names
