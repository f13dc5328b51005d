"""The split files that MIT-67 and CUB-200 come with, and what happens where they do not fit the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sweeper import registry, spacefile
from sweeper.config import SweepConfig
from sweeper.datasets.image_folder import Config, decode, index, known_classes
from sweeper.errors import InputError


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (number, 0, 0)).save(path)


def mit67(root: Path) -> Path:
    """Two rooms; of each 8 images are listed for training, 2 for testing, and 3 are not listed."""
    lists: dict[str, list[str]] = {"TrainImages.txt": [], "TestImages.txt": []}
    for label, room in enumerate(("airport_inside", "artstudio")):
        for number in range(13):
            save(root / "Images" / room / f"{room} {number}.jpg", 20 * number + label)
            if number < 10:
                lists["TrainImages.txt" if number < 8 else "TestImages.txt"].append(f"{room}/{room} {number}.jpg")
    for file, lines in lists.items():
        (root / file).write_text("\r\n".join(lines) + "\r\n")
    return root


def cub200(root: Path) -> Path:
    """Three birds with 6 images each, a third of them for testing, numbered across the classes."""
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"]
    images, labels, split = [], [], []
    for row in range(18):
        name = f"{classes[row % 3]}/Bird_{row:04d}.jpg"
        save(root / "images" / name, 10 * row)
        images.append(f"{row + 1} {name}")
        labels.append(f"{row + 1} {row % 3 + 1}")
        split.append(f"{row + 1} {int(row < 12)}")
    (root / "images.txt").write_text("\n".join(images))
    (root / "image_class_labels.txt").write_text("\n".join(labels))
    (root / "train_test_split.txt").write_text("\n".join(split))
    (root / "classes.txt").write_text("\n".join(f"{n + 1} {name}" for n, name in enumerate(classes)))
    return root


def at(root: Path, splits: str, **more: object) -> Config:
    return Config.model_validate({"root": str(root), "splits": splits, **more})


def refusal(root: Path, splits: str) -> str:
    with pytest.raises(InputError) as caught:
        index(at(root, splits), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.root: {root}: ")
    assert message.isprintable()
    return message


def test_mit67_is_split_by_its_files_and_the_unlisted_images_are_left_out(tmp_path: Path) -> None:
    config = at(mit67(tmp_path), "mit67")
    found = index(config, 0)
    assert found.class_names == ("airport inside", "artstudio")
    assert found.split_counts() == {"train": 14, "val": 2, "test": 4}
    test = {name for name, split in zip(found.sample_ids, found.splits, strict=True) if split == "test"}
    assert test == {f"Images/{room}/{room} {n}.jpg" for room in ("airport_inside", "artstudio") for n in (8, 9)}
    assert all(label == (1 if "art" in name else 0) for name, label in zip(found.sample_ids, found.labels, strict=True))
    assert all(isinstance(image, Image.Image) for image in decode(config, found.sources))


def test_mit67_may_lie_without_its_images_folder(tmp_path: Path) -> None:
    expected = index(at(mit67(tmp_path), "mit67"), 0)
    for room in (tmp_path / "Images").iterdir():
        room.rename(tmp_path / room.name)
    (tmp_path / "Images").rmdir()
    found = index(at(tmp_path, "mit67"), 0)
    assert [f"Images/{name}" for name in found.sample_ids] == expected.sample_ids
    assert found.split_counts() == expected.split_counts()


def test_cub200_is_split_and_named_by_its_files(tmp_path: Path) -> None:
    found = index(at(cub200(tmp_path), "cub200"), 0)
    assert found.class_names == ("Black footed Albatross", "Laysan Albatross", "Red winged Blackbird")
    assert found.split_counts() == {"train": 9, "val": 3, "test": 6}
    for name, label, split in zip(found.sample_ids, found.labels.tolist(), found.splits, strict=True):
        row = int(name[-8:-4])
        assert label == row % 3
        assert (split == "test") == (row >= 12)


BREAKS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no list": (
        "mit67",
        lambda root: (root / "TestImages.txt").unlink(),
        "no TestImages.txt; the official split files",
    ),
    "an image is gone": (
        "mit67",
        lambda root: (root / "Images" / "artstudio" / "artstudio 3.jpg").unlink(),
        "1 images of TrainImages.txt and TestImages.txt are not there: Images/artstudio/artstudio 3.jpg; unpack",
    ),
    "listed twice": (
        "mit67",
        lambda root: append(root / "TestImages.txt", "artstudio/artstudio 3.jpg"),
        "TestImages.txt: artstudio/artstudio 3.jpg is listed before; an image has one split",
    ),
    "no class": (
        "mit67",
        lambda root: append(root / "TestImages.txt", "x\x1b.jpg"),
        "expected lines like class/file.jpg",
    ),
    "out of the root": ("mit67", lambda root: append(root / "TestImages.txt", "../../x.jpg"), "are not there"),
    "another set": ("cub200", lambda root: (root / "classes.txt").unlink(), "no classes.txt; the official split files"),
    "a bird is gone": (
        "cub200",
        lambda root: next((root / "images").rglob("*0004.jpg")).unlink(),
        "1 images of images.txt are not there: images/002.Laysan_Albatross/Bird_0004.jpg",
    ),
    "a bird more": (
        "cub200",
        lambda root: save(root / "images" / "002.Laysan_Albatross" / "new.jpg", 1),
        "images/002.Laysan_Albatross/new.jpg: not in images.txt",
    ),
    "no label": (
        "cub200",
        lambda root: append(root / "images.txt", "19 x/y.jpg"),
        "image_class_labels.txt and images.txt do not number the same images: 19",
    ),
    "no such class": (
        "cub200",
        lambda root: replace(root / "image_class_labels.txt", "7 1", "7 44"),
        "image_class_labels.txt: class 44 is not in classes.txt",
    ),
    "no such split": (
        "cub200",
        lambda root: replace(root / "train_test_split.txt", "7 1", "7 2"),
        "expected 1 (train)",
    ),
    "no number": (
        "cub200",
        lambda root: append(root / "images.txt", "one x/y.jpg"),
        "images.txt: one x/y.jpg: expected a",
    ),
    "numbered twice": ("cub200", lambda root: append(root / "classes.txt", "1 x"), "classes.txt: 1 x: is there twice"),
}


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text().rstrip()}\n{line}\n")


def replace(path: Path, old: str, new: str) -> None:
    assert path.read_text().count(f"\n{old}\n") == 1
    path.write_text(path.read_text().replace(f"\n{old}\n", f"\n{new}\n"))


@pytest.mark.parametrize("name", BREAKS)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    splits, break_it, expected = BREAKS[name]
    {"mit67": mit67, "cub200": cub200}[splits](tmp_path)
    break_it(tmp_path)
    assert expected in refusal(tmp_path, splits)


def test_names_that_would_become_one_stay_as_they_are(tmp_path: Path) -> None:
    cub200(tmp_path)
    text = (tmp_path / "classes.txt").read_text().replace("Laysan_Albatross", "Black_footed_Albatross")
    (tmp_path / "classes.txt").write_text(text)
    assert index(at(tmp_path, "cub200"), 0).class_names[:2] == (
        "001.Black_footed_Albatross",
        "002.Black_footed_Albatross",
    )


def test_the_expected_number_of_classes_is_checked_and_known(tmp_path: Path) -> None:
    cub200(tmp_path)
    assert len(index(at(tmp_path, "cub200", num_classes=3), 0).class_names) == 3
    with pytest.raises(InputError, match=r"3 classes \(.*\), but `dataset\.num_classes` says 200"):
        index(at(tmp_path, "cub200", num_classes=200), 0)
    assert known_classes(at(tmp_path, "cub200")) is None
    assert known_classes(at(tmp_path, "cub200", num_classes=200)) == 200


EXAMPLES = {
    "image_folder": {"root": "x"},
    "parquet": {"path": "x"},
    "webdataset": {"path": "x"},
    "huggingface": {"name": "x"},
    "torchvision": {"name": "DTD", "root": "x"},
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_is_expected_is_no_part_of_a_runs_identity(kind: str) -> None:
    """A run goes on where it stopped, whether the number of classes was written down or not."""

    def identity(**more: object) -> object:
        dataset = {"kind": kind, **EXAMPLES[kind], **more}
        tree = {
            "name": "x",
            "dataset": dataset,
            "trial": {"student": {"model": "test_resnet"}},
            "search": {"trials": 1},
        }
        return spacefile.identity(SweepConfig.model_validate(tree))["dataset"]

    plain = identity()
    assert identity(num_classes=7) == plain
    assert "num_classes" not in plain  # type: ignore[operator]
    if kind == "image_folder":
        assert identity(splits="cub200") == plain
        assert set(plain) == {"kind", "root", "image_size", "fractions", "extensions"}  # type: ignore[call-overload]
    assert (
        registry.load("datasets", kind).known_classes(
            registry.config_class("datasets", kind).model_validate({**EXAMPLES[kind], "num_classes": 7})
        )
        == 7
    )
