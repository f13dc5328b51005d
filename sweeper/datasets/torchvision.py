"""The published datasets that torchvision reads: CIFAR, DTD, Caltech-101, Flowers, Pets and others, by their names.

`root` is what torchvision calls by that name, and every node that decodes has to see it under the same path;
`download: true` lets the driver fetch what is not there. Splits are the published ones (DTD's by `partition`); a val or
test that a dataset does not have is taken from train by the seed, `trainval` is train, and STL10's unlabelled images
are left out.

Datasets of image files are listed by torchvision and then read as any folder, one image at a time. The small ones that
are one array (CIFAR, MNIST and its kin, STL10, SVHN, USPS) are held whole by each process that decodes them, 2.3 GB at
most. CIFAR's own format is pickles: they are read by torchvision alone, after it has compared the md5 sum of each file
with the published one; what differs is refused unread. (MNIST as torchvision of before 2020 left it, `processed/*.pt`,
goes through torch's restricted unpickler, which takes tensors alone.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from sweeper.datasets import (
    DatasetIndex,
    Fractions,
    ImageSize,
    NumClasses,
    check_num_classes,
    complete_splits,
    given_path,
    image_folder,
    refusing,
)
from sweeper.datasets._folders import HASH_THREADS, digest
from sweeper.datasets._places import is_remote
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

Name = Literal[
    "CIFAR10", "CIFAR100", "Caltech101", "Caltech256", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "FashionMNIST",
    "Flowers102", "Food101", "GTSRB", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "RenderedSST2", "STL10",
    "SUN397", "SVHN", "StanfordCars", "USPS",
]  # fmt: skip
Splits = Mapping[str, Mapping[str, Any]]  # train, val, test -> how torchvision is asked for it


class Published(NamedTuple):
    """A dataset: its number of classes, and how torchvision is asked for each split that it has."""

    classes: int
    splits: Splits


_WHOLE: Splits = {"train": {}}
_FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
_TWO: Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Splits = {**_TWO, "val": {"split": "val"}}
PUBLISHED: Mapping[Name, Published] = {
    "CIFAR10": Published(10, _FLAG),
    "CIFAR100": Published(100, _FLAG),
    "Caltech101": Published(101, _WHOLE),
    "Caltech256": Published(257, _WHOLE),
    "Country211": Published(211, {**_TWO, "val": {"split": "valid"}}),
    "DTD": Published(47, _THREE),
    "EuroSAT": Published(10, _WHOLE),
    "FGVCAircraft": Published(100, _THREE),
    "FashionMNIST": Published(10, _FLAG),
    "Flowers102": Published(102, _THREE),
    "Food101": Published(101, _TWO),
    "GTSRB": Published(43, _TWO),
    "Imagenette": Published(10, {"train": {"split": "train"}, "val": {"split": "val"}}),
    "KMNIST": Published(10, _FLAG),
    "MNIST": Published(10, _FLAG),
    "OxfordIIITPet": Published(37, {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "RenderedSST2": Published(2, _THREE),
    "STL10": Published(10, _TWO),
    "SUN397": Published(397, _WHOLE),
    "SVHN": Published(10, _TWO),
    "StanfordCars": Published(196, _TWO),
    "USPS": Published(10, _FLAG),
}


class Config(Settings):
    """`name` as in `torchvision.datasets`; `partition` is DTD's. `num_classes`, where it is given, is checked."""

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"download", "num_classes"})

    kind: Literal["torchvision"] = "torchvision"
    name: Name
    root: Annotated[str, Field(min_length=1)]
    download: bool = False
    partition: Annotated[int, Field(ge=1, le=10)] = 1
    image_size: ImageSize = 32
    fractions: Fractions = Fractions()
    num_classes: NumClasses = None


def index(config: Config, seed: int) -> DatasetIndex:
    """List and hash every image of the published splits.

    Raises:
        InputError: the data are not there, or not what was published, or have another number of classes.
    """
    where = f"dataset.root: {one_line(config.root)}"
    if is_remote(config.root):
        raise InputError(f"{where}: torchvision reads folders of this machine; give one that all nodes see")
    given = Path(os.path.normpath(given_path(config.root, where).absolute()))
    ids: list[str] = []
    digests: list[str] = []
    sources: list[str] = []
    labels: list[int] = []
    splits: list[str] = []
    names: tuple[str, ...] = ()
    for split in PUBLISHED[config.name].splits:
        with refusing(where):
            found = _opened(config, str(given), split, where, download=config.download)
        targets = _targets(found)
        paths = _paths(found, given, where)
        if paths is None:
            rows = range(len(targets))
            ids += [f"{split}#{row}" for row in rows]
            sources += [f"{split}#{row}" for row in rows]
            digests += [hashlib.sha256(np.ascontiguousarray(found.data[row]).tobytes()).hexdigest() for row in rows]
        else:
            listed = sorted(zip(paths, targets, strict=True))  # SUN397 comes in the order of the disk
            paths, targets = [path for path, _ in listed], [label for _, label in listed]
            ids += [path.relative_to(given).as_posix() for path in paths]
            sources += map(str, paths)
            with ThreadPoolExecutor(HASH_THREADS) as threads:
                digests += threads.map(digest, map(str, paths))
        labels += targets
        splits += [split] * len(targets)
        names = max(names, _class_names(found, targets), key=len)
    check_num_classes(names, config.num_classes, where)
    numbers = np.asarray(labels, dtype=np.int64)
    splits = complete_splits(splits, numbers, config.fractions, seed, names, where)
    samples = list(zip(ids, digests, labels, splits, strict=True))
    content = fingerprint({"class_names": names, "samples": samples})
    return DatasetIndex(names, ids, numbers, splits, sources, content)


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources`: an absolute path, or a split and a row of its array (`train#7`)."""
    return [image_folder.decode_file(s) if os.path.isabs(s) else _decode_row(config, s) for s in sources]


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """The published number of classes."""
    return config.num_classes or PUBLISHED[config.name].classes


def _decode_row(config: Config, source: str) -> Image.Image | Exception:
    split, _, row = source.partition("#")
    try:
        image: Image.Image = _kept(config, split)[int(row)][0]
        return image.convert("RGB")
    except (OSError, LookupError, InputError) as error:
        return error


@lru_cache(maxsize=3)
def _kept(config: Config, split: str) -> Any:
    """One split as a torchvision dataset, for the tasks: never downloaded there."""
    where = f"dataset.root: {one_line(config.root)}"
    return _opened(config, str(given_path(config.root, where).absolute()), split, where)


def _opened(config: Config, root: str, split: str, where: str, download: bool = False) -> Any:
    from torchvision import datasets

    how = dict(PUBLISHED[config.name].splits[split])
    if config.name == "DTD":
        how["partition"] = config.partition
    if download:
        how["download"] = True
    try:
        if config.name.startswith("Caltech") and not download and not os.path.isdir(f"{root}/{config.name.lower()}"):
            raise FileNotFoundError("Dataset not found.")  # torchvision would make this folder
        return getattr(datasets, config.name)(root, **how)
    except PermissionError:
        raise
    # torchvision says so of data that is not there, of another md5 and of a server that does not answer.
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError, OSError) as error:
        why = one_line(str(error)).removesuffix(" You can use download=True to download it")
        hint = "unpack what was published there, as torchvision lays it out"
        hint += "" if download else ", or set `dataset.download: true`"
        raise InputError(f"{where}: {config.name} ({split}): {why or type(error).__name__}; {hint}") from error


def _targets(found: Any) -> list[int]:
    for name in ("targets", "_labels", "labels", "y"):
        if hasattr(found, name):
            return [int(label) for label in getattr(found, name)]
    return [int(label) for _, label in _pairs(found)]


def _pairs(found: Any) -> Sequence[tuple[str, int]]:
    pairs: Sequence[tuple[str, int]] = found._samples if hasattr(found, "_samples") else found.samples
    return pairs


def _paths(found: Any, root: Path, where: str) -> list[Path] | None:
    """The files of a split in its order, None for an array. Raises InputError: one that does not lie below the root."""
    if hasattr(found, "data"):
        return None
    if hasattr(found, "categories"):  # Caltech101, Caltech256
        folder = Path(found.root)
        if type(found).__name__ == "Caltech101":
            names = [
                Path("101_ObjectCategories", found.categories[y], f"image_{number:04d}.jpg")
                for number, y in zip(found.index, found.y, strict=True)
            ]
        else:
            names = [
                Path("256_ObjectCategories", found.categories[y], f"{y + 1:03d}_{number:04d}.jpg")
                for number, y in zip(found.index, found.y, strict=True)
            ]
        listed = [folder / name for name in names]
    elif hasattr(found, "_image_files") or hasattr(found, "_images"):
        listed = [Path(file) for file in (found._image_files if hasattr(found, "_image_files") else found._images)]
    else:
        listed = [Path(file) for file, _ in _pairs(found)]
    whole = [Path(os.path.normpath(file.absolute())) for file in listed]
    outside = [path for path in whole if not path.is_relative_to(root)]
    if outside:
        raise InputError(f"{where}: {one_line(str(outside[0]))} is listed, which does not lie below it")
    return whole


def _class_names(found: Any, targets: Sequence[int]) -> tuple[str, ...]:
    """As torchvision names them, without the digit of `7 - seven`; of a WordNet class the first name; else numbers."""
    names = getattr(found, "classes", None) or getattr(found, "categories", None)
    if not names:
        return tuple(str(number) for number in range(max(targets, default=-1) + 1))
    firsts = [name if isinstance(name, str) else name[0] for name in names]
    return tuple(name.split(" - ", 1)[1] if name[:1].isdigit() and name[1:4] == " - " else name for name in firsts)
