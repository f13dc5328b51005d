"""A folder of your own images: one sub-folder a class, with or without train/val/test folders above.

    root/cat/1.jpg                                      split by the seed, each class alike
    root/train/cat/1.jpg  root/val/cat/2.jpg  ...       your splits; a missing val or test is taken from train

Class names are the sorted names of the (training) class folders. Images may lie deeper inside a class folder; hidden
files and files with other extensions are passed over. `valid` and `validation` are read as val.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

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
from sweeper.errors import InputError
from sweeper.fingerprint import file_sha256, fingerprint
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HASH_THREADS = 8
MAX_FILE_BYTES = 2**30  # a file is held whole while it is decoded; 100 million pixels of 16-bit RGB are 600 MB
MAX_ROUTES = 100  # ways to one folder through links, which multiply where linked folders hold links


def _with_dots(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError(f"needs at least one, such as {EXTENSIONS[0]}")
    return tuple("." + extension.lower().lstrip(".") for extension in value)


Extensions = Annotated[tuple[str, ...], AfterValidator(_with_dots)]


class Config(Settings):
    """`root` is the folder; `fractions` apply to the splits that it does not have."""

    kind: Literal["image_folder"] = "image_folder"
    root: Annotated[str, Field(min_length=1)]
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    extensions: Extensions = EXTENSIONS


def index(config: Config, seed: int) -> DatasetIndex:
    """List, label and hash every image.

    Raises:
        InputError: no such folder, no class folders, fewer than two classes, a class with too few images, a class that
            train does not have, split folders mixed with others.
    """
    where = f"dataset.root: {one_line(config.root)}"
    root = given_path(config.root, where)
    files: list[tuple[str, int, str]] = []  # relative path, label, split
    with refusing(where):
        check_root(root, where, "give a folder of class folders")
        parts = _split_folders(root, config, where)
        names = _class_names(root, parts, config, where)
        numbers = {name: label for label, name in enumerate(names)}
        for split, folder in (parts or {"train": root}).items():
            for child in _subfolders(folder):
                for file in images_below(child, config.extensions):
                    files.append((relative_name(file, root, where), numbers[child.name], split))
    files.sort()
    sample_ids = [file[0] for file in files]
    labels = np.asarray([file[1] for file in files], dtype=np.int64)
    splits = complete_splits([file[2] for file in files], labels, config.fractions, seed, names, where)
    sources = [str((root / sample_id).absolute()) for sample_id in sample_ids]
    with ThreadPoolExecutor(HASH_THREADS) as threads:
        digests = list(threads.map(digest, sources))
    samples = list(zip(sample_ids, digests, labels.tolist(), splits, strict=True))
    content = fingerprint({"class_names": names, "samples": samples})
    return DatasetIndex(tuple(names), sample_ids, labels, splits, sources, content)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (absolute paths); an unreadable one is its exception."""
    return [decode_file(source) for source in sources]


def decode_file(path: str) -> Image.Image | Exception:
    """One image, or why it can not be read."""
    try:
        _check_file(path)
        data = Path(path).read_bytes()
    except OSError as error:
        return error
    return decode_image(data)


def _check_file(path: str) -> None:
    """Refuse what never ends or does not fit into memory.

    Raises:
        OSError: a pipe, a device or the like, or more than `MAX_FILE_BYTES`.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if found.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")


def check_root(root: Path, where: str, hint: str) -> None:
    """Refuse what is no folder, or an empty one."""
    if not root.exists():
        near = next((str(parent) for parent in root.absolute().parents if parent.is_dir()), "/")
        raise InputError(f"{where}: no such folder (the nearest one that exists is {one_line(near)}); {hint}")
    if not root.is_dir():
        raise InputError(f"{where}: is a file; {hint}, or use `kind: parquet` for parquet files")
    if not any(not _hidden(name) for name in os.listdir(root)):
        raise InputError(f"{where}: the folder is empty; {hint}")


def _split_folders(root: Path, config: Config, where: str) -> dict[str, Path]:
    """The folder of each split that `root` has; empty when its sub-folders are the classes.

    A folder named like a split counts as one where it holds folders and no image of its own: "train" may be a class
    of a set of vehicles, and then it holds images.
    """
    found: dict[str, Path] = {}
    others = []
    for child in _subfolders(root):
        split = SPLIT_NAMES.get(child.name.lower())
        if split is None or not _subfolders(child) or _has_direct_image(child, config):
            others.append(child.name)
        elif split in found:
            raise InputError(f"{where}: both {found[split].name} and {child.name} hold the split {split!r}; keep one")
        else:
            found[split] = child
    if not found:
        return {}
    if others:
        empty = " (a split folder needs class folders inside)" if {o.lower() for o in others} & set(SPLIT_NAMES) else ""
        splits = ", ".join(folder.name for folder in found.values())
        raise InputError(
            f"{where}: the split folders {splits} lie beside {shorten(others)}{empty}; "
            "have either split folders or class folders there, and move the rest away"
        )
    if "train" not in found:
        raise InputError(f"{where}: found {', '.join(f.name for f in found.values())} but no train folder; add train/")
    for split, folder in found.items():
        if not any(True for child in _subfolders(folder) for _ in images_below(child, config.extensions)):
            raise InputError(
                f"{where}: the folder {folder.name} holds no image ({', '.join(config.extensions)}); "
                f"add some, or remove it{'' if split == 'train' else f' to have {split} split off train'}"
            )
    return found


def _class_names(root: Path, parts: dict[str, Path], config: Config, where: str) -> list[str]:
    """Sorted names of the class folders of all splits together; that train has each of them is checked later."""
    names = sorted({child.name for folder in parts.values() or [root] for child in _subfolders(folder)})
    train = parts.get("train", root)
    if not names:
        hint = "expected one sub-folder a class, with images inside"
        if _has_direct_image(root, config):
            raise InputError(
                f"{where}: images lie directly in the folder and have no class; {hint}: sort them into folders"
            )
        raise InputError(f"{where}: no sub-folders; {hint}")
    if not any(True for name in names for _ in images_below(train / name, config.extensions)):
        seen = sorted({Path(file).suffix.lower() or "no extension" for _, _, some in os.walk(train) for file in some})
        raise InputError(
            f"{where}: no image in {shorten(names)}; found {shorten(seen) or 'no file at all'}, allowed are "
            f"{', '.join(config.extensions)} (`dataset.extensions`)"
        )
    if len(names) < 2:
        raise InputError(f"{where}: one class only ({names[0]}); a classifier needs at least two class folders")
    return names


def images_below(folder: Path, extensions: Sequence[str]) -> Iterator[Path]:
    """Image files below a folder, through symbolic links but for those that lead back to where they came from.

    Raises:
        OSError: a folder that cannot be listed.
        InputError: links that lead to one folder in more than `MAX_ROUTES` ways.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a split need not have every class
            raise error

    real = {str(folder): frozenset([os.path.realpath(folder)])}
    routes: Counter[str] = Counter()
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        above = real.pop(current)
        kept = []
        for name in folders:
            target = os.path.realpath(os.path.join(current, name))
            if not _hidden(name) and not any(f"{place}/".startswith(f"{target}/") for place in above):
                kept.append(name)
                real[os.path.join(current, name)] = above | {target}
                routes[target] += 1
                if routes[target] > MAX_ROUTES:
                    raise InputError(
                        f"{one_line(target)}: symbolic links lead here in more than {MAX_ROUTES} ways; remove some"
                    )
        folders[:] = kept
        yield from (Path(current, name) for name in files if _is_image(name, extensions))


def _has_direct_image(folder: Path, config: Config) -> bool:
    return any(_is_image(entry.name, config.extensions) and not _is_folder(entry) for entry in os.scandir(folder))


def _is_image(name: str, extensions: Sequence[str]) -> bool:
    return not _hidden(name) and name.lower().endswith(tuple(extensions))


def _subfolders(folder: Path) -> list[Path]:
    """Visible folders, without links back to a folder above (a loop)."""
    above = {os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents)}
    children = (Path(entry.path) for entry in os.scandir(folder) if not _hidden(entry.name) and _is_folder(entry))
    return sorted(child for child in children if os.path.realpath(child) not in above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def relative_name(file: Path, root: Path, where: str) -> str:
    """The path below the root, with slashes, which is a sample's id."""
    name = file.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the file name {name!r} is not valid UTF-8; rename the file") from None
    return name


def digest(path: str) -> str:
    """Of the bytes; a file that cannot be read has a digest too, since decoding it counts and lists it."""
    try:
        _check_file(path)
        return file_sha256(path)
    except OSError as error:
        return hashlib.sha256(f"unreadable: {type(error).__name__}".encode()).hexdigest()
