"""Published datasets, as tiny stand-ins in their own formats on a disk, read by torchvision itself."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torchvision
from PIL import Image

from sweeper.datasets import torchvision as kind
from sweeper.datasets.torchvision import PUBLISHED, Config, Name, decode, index, known_classes
from sweeper.errors import InputError

COUNTS = {"train": 8, "val": 4, "test": 4}  # images a class


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (number, number, number)).save(path, "PPM" if path.suffix == ".ppm" else "JPEG")


def grey(split: str, label: int, number: int) -> int:
    """What an image shows: its split, label and number."""
    return {"train": 0, "val": 60, "test": 120}[split] + 30 * label + 3 * number


def each(*splits: str) -> list[tuple[str, int, int]]:
    return [(split, label, number) for split in splits for label in (0, 1) for number in range(COUNTS[split])]


def dtd(root: Path) -> None:
    lines: dict[str, list[str]] = {}
    for split, label, number in each("train", "val", "test"):
        name = f"{('banded', 'dotted')[label]}/{split}_{number}.jpg"
        save(root / "dtd" / "dtd" / "images" / name, grey(split, label, number))
        lines.setdefault(split, []).append(name)
    (root / "dtd" / "dtd" / "labels").mkdir()
    for split, names in lines.items():
        (root / "dtd" / "dtd" / "labels" / f"{split}1.txt").write_text("\n".join(names))


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    lines: dict[str, list[str]] = {}
    for split, label, number in each("train", "test"):
        name = f"{('Abyssinian', 'great_pyrenees')[label]}_{split}{number}"
        save(folder / "images" / f"{name}.jpg", grey(split, label, number))
        lines.setdefault(split, []).append(f"{name} {label + 1} 1 1")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text("\n".join(lines["train"]))
    (folder / "annotations" / "test.txt").write_text("\n".join(lines["test"]))


def eurosat(root: Path) -> None:
    for split, label, number in each("train"):
        save(root / "eurosat" / "2750" / ("Forest", "River")[label] / f"{number}.jpg", grey(split, label, number))


def country(root: Path) -> None:
    for split, label, number in each("train", "val", "test"):
        folder = {"val": "valid"}.get(split, split)
        save(root / "country211" / folder / ("AD", "AE")[label] / f"{number}.jpg", grey(split, label, number))


def caltech(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for split, label, number in each("train"):
        save(folder / ("Faces", "ant")[label] / f"image_{number + 1:04d}.jpg", grey(split, label, number))
    save(folder / "BACKGROUND_Google" / "image_0001.jpg", 9)


def gtsrb(root: Path) -> None:
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for split, label, number in each("train", "test"):
        if split == "train":
            save(root / "gtsrb/GTSRB/Training" / f"{label:05d}" / f"{number}.ppm", grey(split, label, number))
        else:
            save(root / "gtsrb/GTSRB/Final_Test/Images" / f"{label}{number}.ppm", grey(split, label, number))
            rows.append(f"{label}{number}.ppm;1;1;1;1;1;1;{label}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))


def food(root: Path) -> None:
    names: dict[str, dict[str, list[str]]] = {}
    for split, label, number in each("train", "test"):
        name = ("apple_pie", "baklava")[label]
        save(root / "food-101" / "images" / name / f"{split}{number}.jpg", grey(split, label, number))
        names.setdefault(split, {}).setdefault(name, []).append(f"{name}/{split}{number}")
    (root / "food-101" / "meta").mkdir()
    for split, listed in names.items():
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    lines: dict[str, list[str]] = {}
    for split, label, number in each("train", "val", "test"):
        save(folder / "images" / f"{split}{label}{number}.jpg", grey(split, label, number))
        lines.setdefault(split, []).append(f"{split}{label}{number} {('707-320', 'A300 B4')[label]}")
    (folder / "variants.txt").write_text("707-320\nA300 B4\n")
    for split, listed in lines.items():
        (folder / f"images_variant_{split}.txt").write_text("\n".join(listed))


def sun(root: Path) -> None:
    for split, label, number in each("train"):
        save(root / "SUN397" / "a" / ("abbey", "alley")[label] / f"sun_{number}.jpg", grey(split, label, number))
    (root / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/a/alley\n")


def imagenette(root: Path) -> None:
    for split, label, number in each("train", "val"):
        folder = root / "imagenette2" / split / ("n01440764", "n02102040")[label]
        save(folder / f"{number}.JPEG", grey(split, label, number))


def fashion(root: Path) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        rows = each(split)
        # Ten classes have names, so that ten have to occur: the first two many times.
        labels = [label for _, label, _ in rows] + [n for n in range(2, 10) for _ in range(3)]
        pixels = [grey(*row) for row in rows] + [0] * 24
        images = np.repeat(np.asarray(pixels, np.uint8), 28 * 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, len(labels), 28, 28) + images.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))


STAND_INS: Mapping[Name, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "DTD": (dtd, ("banded", "dotted"), ("train", "val", "test")),
    "OxfordIIITPet": (pets, ("Abyssinian", "Great Pyrenees"), ("train", "test")),
    "EuroSAT": (eurosat, ("Forest", "River"), ("train",)),
    "Country211": (country, ("AD", "AE"), ("train", "val", "test")),
    "Caltech101": (caltech, ("Faces", "ant"), ("train",)),
    "GTSRB": (gtsrb, ("0", "1"), ("train", "test")),
    "Food101": (food, ("apple_pie", "baklava"), ("train", "test")),
    "FGVCAircraft": (aircraft, ("707-320", "A300 B4"), ("train", "val", "test")),
    "SUN397": (sun, ("abbey", "alley"), ("train",)),
    "Imagenette": (imagenette, ("tench", "English springer"), ("train", "val")),
}


def at(name: str, root: Path, **more: Any) -> Config:
    return Config.model_validate({"name": name, "root": str(root), **more})


@pytest.mark.parametrize("name", STAND_INS)
def test_the_published_splits_labels_and_names(name: Name, tmp_path: Path) -> None:
    write, names, splits = STAND_INS[name]
    write(tmp_path)
    config = at(name, tmp_path)
    found = index(config, 0)
    assert found.class_names == names
    assert set(PUBLISHED[name].splits) == set(splits)
    counts = {split: 2 * COUNTS[split] if split in splits else 0 for split in COUNTS}
    for split in set(COUNTS) - set(splits):
        moved = 2
        counts["train"], counts[split] = counts["train"] - moved, moved
    assert found.split_counts() == counts
    shown = [image.getpixel((5, 5))[0] for image in decode(config, found.sources)]  # type: ignore[union-attr,index]
    given = {grey(*row): row for row in each(*splits)}
    for level, label, split in zip(shown, found.labels.tolist(), found.splits, strict=True):
        near = min(given, key=lambda known: abs(known - level))
        assert abs(near - level) <= 1
        theirs, theirs_label, _ = given[near]
        assert label == theirs_label
        assert split == theirs or (theirs == "train" and split not in splits)
    assert found.sample_ids == [str(Path(source).relative_to(tmp_path)) for source in found.sources]


def test_arrays_are_read_by_their_rows(tmp_path: Path) -> None:
    fashion(tmp_path)
    config = at("FashionMNIST", tmp_path)
    found = index(config, 0)
    assert found.class_names[:2] == ("T-shirt/top", "Trouser")
    assert len(found.class_names) == 10
    assert found.sample_ids[0] == found.sources[0] == "train#0"
    shown = dict(zip(found.sources, decode(config, found.sources), strict=True))
    assert [shown[f"test#{row}"].getpixel((0, 0))[0] for row in range(8)] == [grey(*row) for row in each("test")]  # type: ignore[union-attr,index]
    assert shown["train#0"].mode == "RGB"  # type: ignore[union-attr]
    again = index(config, 0)
    assert again.content == found.content
    assert isinstance(decode(config, ["train#999"])[0], IndexError)
    assert index(at("FashionMNIST", tmp_path), 1).content != found.content  # val is drawn by the seed


@pytest.mark.parametrize("name", ["MNIST", "KMNIST"])
def test_the_digit_is_taken_off_a_name(name: Name, tmp_path: Path) -> None:
    fashion(tmp_path)
    (tmp_path / "FashionMNIST").rename(tmp_path / name)
    found = index(at(name, tmp_path), 0)
    assert found.class_names[7] == {"MNIST": "seven", "KMNIST": "ya"}[name]


# ------------------------------------------------------------------------------------------------- md5 and pickles


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's own format, with the published md5 sums replaced by those of the stand-in, in this test alone."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for place, name in enumerate(names):
        rows = np.zeros((20, 3072), np.uint8)
        rows[:, :1024] = np.arange(20)[:, None] + 20 * place  # red
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [n % 10 for n in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"name {n}" for n in range(10)]}))
    for file in folder.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    kind._kept.cache_clear()


def test_cifar_is_read_once_its_sums_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, monkeypatch)
    config = at("CIFAR10", tmp_path)
    found = index(config, 0)
    assert found.class_names == tuple(f"name {n}" for n in range(10))
    assert found.split_counts() == {"train": 80, "val": 20, "test": 20}
    shown = [image.getpixel((3, 3)) for image in decode(config, found.sources)]  # type: ignore[union-attr]
    assert shown == [(level, 0, 0) for level in range(120)]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_pickle_of_another_sum_is_refused_unread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, monkeypatch)
    index_before = index(at("CIFAR10", tmp_path), 0)
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(_Trap(str(tmp_path / "ran"))))
    with pytest.raises(InputError, match=r"dataset\.root: .*: CIFAR10 \(train\): Dataset .*not found or corrupted"):
        index(at("CIFAR10", tmp_path), 0)
    kind._kept.cache_clear()
    assert all(isinstance(image, InputError) for image in decode(at("CIFAR10", tmp_path), index_before.sources))
    assert not (tmp_path / "ran").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", get_args(Name))
def test_data_that_is_not_there(name: Name, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        index(at(name, tmp_path), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.root: {tmp_path}: {name} (train): ")
    assert message.endswith("as torchvision lays it out, or set `dataset.download: true`")
    assert not list(tmp_path.iterdir())


def test_the_number_of_classes_is_published_or_given(tmp_path: Path) -> None:
    assert known_classes(at("DTD", tmp_path)) == 47
    assert known_classes(at("DTD", tmp_path, num_classes=2)) == 2
    dtd(tmp_path)
    assert len(index(at("DTD", tmp_path, num_classes=2), 0).class_names) == 2
    with pytest.raises(InputError, match=r"2 classes \(banded, dotted\), but `dataset\.num_classes` says 47"):
        index(at("DTD", tmp_path, num_classes=47), 0)


def test_every_name_is_torchvisions_and_of_its_splits() -> None:
    assert set(get_args(Name)) == set(PUBLISHED)
    for name, published in PUBLISHED.items():
        assert hasattr(torchvision.datasets, name)
        assert "train" in published.splits


def test_a_list_of_files_may_not_lead_out_of_the_root(tmp_path: Path) -> None:
    aircraft(tmp_path / "in")
    save(tmp_path / "secret.jpg", 1)
    with (tmp_path / "in" / "fgvc-aircraft-2013b" / "data" / "images_variant_train.txt").open("a") as file:
        file.write("\n../../../../secret 707-320")
    with pytest.raises(InputError, match=r"secret\.jpg is listed, which does not lie below it"):
        index(at("FGVCAircraft", tmp_path / "in"), 0)


def test_a_bucket_is_not_torchvisions() -> None:
    with pytest.raises(InputError, match="torchvision reads folders of this machine"):
        index(at("DTD", Path("x")).model_copy(update={"root": "s3://b/x"}), 0)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    fashion(tmp_path)
    (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"FashionMNIST \(train\): "):
        index(at("FashionMNIST", tmp_path), 0)
