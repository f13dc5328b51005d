"""Split files that published sets of images come with, beside their class folders.

`mit67`, indoor scenes (Quattoni & Torralba 2009): TrainImages.txt and TestImages.txt, a line `class/file.jpg` an image;
the images lie in Images/. The files list a part of the images (80 and 20 a class), and the others are left out.

`cub200`, Caltech-UCSD Birds 200-2011 (Wah et al. 2011): images.txt, image_class_labels.txt, train_test_split.txt and
classes.txt, lines that begin with an image's or a class's number; the images lie in images/. All images are listed.

Class names are made for people and prompts: `001.Black_footed_Albatross` is "Black footed Albatross".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from sweeper.datasets import shorten
from sweeper.datasets._folders import Folder
from sweeper.errors import InputError

Official = Literal["mit67", "cub200"]
Sample = tuple[str, int, str]  # name below the root, label, split


def read(which: Official, folder: Folder, where: str) -> tuple[list[str], list[Sample]]:
    """Class names, and the listed images.

    Raises:
        InputError: a split file that is not there or does not fit the others, or images that are not where it says.
    """
    readers: Mapping[Official, Callable[[Folder, str], tuple[list[str], list[Sample]]]]
    readers = {"mit67": _mit67, "cub200": _cub200}
    return readers[which](folder, where)


def _mit67(folder: Folder, where: str) -> tuple[list[str], list[Sample]]:
    base = "Images/" if "Images" in folder.subfolders() else ""
    present = set(folder.images_below(base.rstrip("/")))
    listed: dict[str, str] = {}
    for file, split in (("TrainImages.txt", "train"), ("TestImages.txt", "test")):
        for line in _lines(folder, file, where):
            if "/" not in line:
                raise InputError(f"{where}: {file}: {shorten([line])}: expected lines like class/file.jpg")
            if base + line in listed:
                raise InputError(f"{where}: {file}: {shorten([line])} is listed before; an image has one split")
            listed[base + line] = split
    _check_present(listed.keys() - present, "TrainImages.txt and TestImages.txt", where)
    folders = sorted({name.removeprefix(base).partition("/")[0] for name in listed})
    labels = {name: label for label, name in enumerate(folders)}
    samples = [(name, labels[name.removeprefix(base).partition("/")[0]], split) for name, split in listed.items()]
    return _for_people(folders), samples


def _cub200(folder: Folder, where: str) -> tuple[list[str], list[Sample]]:
    classes = _numbered(folder, "classes.txt", where)
    images = _numbered(folder, "images.txt", where)
    labels = _numbered(folder, "image_class_labels.txt", where)
    is_train = _numbered(folder, "train_test_split.txt", where)
    for file, rows in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
        if odd := sorted(images.keys() ^ rows.keys()):
            raise InputError(f"{where}: {file} and images.txt do not number the same images: {shorten(odd)}")
    if odd := sorted(set(labels.values()) - classes.keys()):
        raise InputError(f"{where}: image_class_labels.txt: class {shorten(odd)} is not in classes.txt")
    if odd := sorted(set(is_train.values()) - {"0", "1"}):
        raise InputError(f"{where}: train_test_split.txt: {shorten(odd)}: expected 1 (train) or 0 (test)")
    present = set(folder.images_below("images")) if "images" in folder.subfolders() else set()
    listed = {f"images/{name}" for name in images.values()}
    _check_present(listed - present, "images.txt", where)
    if extra := sorted(present - listed):
        raise InputError(
            f"{where}: {shorten(extra)}: not in images.txt; add them to the split files, or move them away"
        )
    order = sorted(classes, key=int)
    numbers = {number: label for label, number in enumerate(order)}
    split = {"1": "train", "0": "test"}
    samples = [(f"images/{name}", numbers[labels[row]], split[is_train[row]]) for row, name in images.items()]
    return _for_people([classes[number] for number in order]), samples


def _lines(folder: Folder, file: str, where: str) -> list[str]:
    text = folder.text(file)
    if text is None:
        raise InputError(f"{where}: no {file}; the official split files belong into this folder, beside the images")
    return [line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()]


def _numbered(folder: Folder, file: str, where: str) -> dict[str, str]:
    """`<number> <rest>` lines, by number."""
    found: dict[str, str] = {}
    for line in _lines(folder, file, where):
        number, _, rest = line.partition(" ")
        if not number.isascii() or not number.isdigit() or not rest or number in found:
            what = "is there twice" if number in found else "expected a number and, after a space, what it stands for"
            raise InputError(f"{where}: {file}: {shorten([line])}: {what}")
        found[number] = rest.strip()
    return found


def _check_present(missing: set[str], file: str, where: str) -> None:
    if missing:
        raise InputError(
            f"{where}: {len(missing):,} images of {file} are not there: {shorten(sorted(missing))}; "
            "unpack the whole archive into this folder"
        )


def _for_people(names: list[str]) -> list[str]:
    """Without numbers and underscores, if they still differ then."""
    cleaned = [re.sub(r"^\d+\.", "", name).replace("_", " ").strip() for name in names]
    return cleaned if len({*cleaned}) == len(names) and all(cleaned) else names
