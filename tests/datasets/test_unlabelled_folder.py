"""Folders without labels: every image below counts, in the order of its path; what no pool can be is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeper import ingest
from sweeper.datasets import DatasetIndex
from sweeper.datasets.unlabelled_folder import Config, decode, index
from sweeper.errors import InputError
from sweeper.plan import Artifact, artifact
from sweeper.store import Store

FILES = ("z.png", "a/b/c/deep.png", "a/2.png", "b/1.jpg", "a/10.png", "B/1.png")
IN_ORDER = ["B/1.png", "a/10.png", "a/2.png", "a/b/c/deep.png", "b/1.jpg", "z.png"]


def write(root: Path, name: str, level: int = 0) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (level, 255 - level, 20)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images at four depths, and what is none: a text, hidden files, a hidden folder."""
    root = tmp_path / "pool"
    for number, name in enumerate(FILES):
        write(root, name, 40 * number)
    (root / "a" / "notes.txt").write_text("no image")
    write(root, ".hidden.png")
    write(root, ".cache/1.png")
    write(root, "__MACOSX/1.png")
    return root


def at(root: Path, **more: object) -> Config:
    return Config.model_validate({"root": str(root), **more})


def test_every_image_below_counts_in_the_order_of_its_path(folder: Path) -> None:
    found = index(at(folder), 0)
    assert found.sample_ids == IN_ORDER
    assert found.sources == [str(folder / name) for name in IN_ORDER]
    assert found.class_names == ()
    assert set(found.labels.tolist()) == {0}
    assert found.split_counts() == {"train": 6, "val": 0, "test": 0}


def test_the_seed_changes_nothing(folder: Path) -> None:
    one, other = index(at(folder), 0), index(at(folder), 1)
    assert (one.content, one.sample_ids) == (other.content, other.sample_ids)


def test_identity_follows_bytes_and_names_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    contents = [index(at(folder), 0).content]
    moved = tmp_path / "else" / "where"
    shutil.copytree(folder, moved)
    assert index(at(moved), 0).content == contents[0]
    write(folder, "z.png", 1)
    contents.append(index(at(folder), 0).content)
    (folder / "z.png").rename(folder / "y.png")
    contents.append(index(at(folder), 0).content)
    (folder / "y.png").unlink()
    contents.append(index(at(folder), 0).content)
    assert len(set(contents)) == 4


def test_decoded_in_the_order_of_the_sources_an_unreadable_one_as_its_exception(folder: Path) -> None:
    (folder / "a" / "2.png").write_bytes(b"broken")
    found = index(at(folder), 0)
    (folder / "z.png").unlink()
    images = decode(at(folder), found.sources)
    assert [isinstance(image, Image.Image) for image in images] == [True, True, False, True, True, False]
    assert isinstance(images[-1], FileNotFoundError)
    assert np.asarray(images[1])[0, 0].tolist() == [160, 95, 20], "a/10.png is the fifth that was written"


def test_other_extensions(folder: Path) -> None:
    assert index(at(folder, extensions=[".png"]), 0).sample_ids == [name for name in IN_ORDER if name != "b/1.jpg"]


@pytest.mark.parametrize("extension", ["png", "PNG", ".PNG"])
def test_extensions_may_be_written_as_in_image_folder(folder: Path, extension: str) -> None:
    Image.new("RGB", (9, 7)).save(folder / "x.png")
    (folder / "x.png").rename(folder / "xpng")  # no extension at all
    found = index(at(folder, extensions=[extension]), 0)
    assert found.sample_ids == [name for name in IN_ORDER if name != "b/1.jpg"]


def test_no_extension_at_all_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="extensions"):
        at(folder, extensions=[])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "no such folder"),
        ("file", "is a file"),
        ("empty", "the folder is empty"),
        ("texts", r"0 images \(\.jpg, .*\); a pool needs at least 2"),
        ("one", "1 images"),
    ],
)
def test_refused(tmp_path: Path, made: str | None, message: str) -> None:
    root = tmp_path / "pool"
    if made == "file":
        root.write_text("x")
    elif made is not None:
        root.mkdir()
    if made == "texts":
        (root / "a.txt").write_text("x")
    if made == "one":
        write(root, "a/1.png")
    with pytest.raises(InputError, match=message) as caught:
        index(at(root), 0)
    assert str(root) in str(caught.value)


# ------------------------------------------------------------------------------------------------- the images stage


def asked_for(found: DatasetIndex) -> Artifact:
    return artifact("images", {"content": found.content}, "test", len(found))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    root = tmp_path / "many"
    for number in range(100):
        write(root, f"{number % 3}/{number:03d}.png", number)
    return root


def test_the_images_stage_takes_an_index_without_classes(ray_session: None, store: Store, many: Path) -> None:
    config = at(many, image_size=8)
    found = index(config, 0)
    record = ingest.build(store, asked_for(found), config, found)
    assert (record.rows, record.charge) == (100, None)
    assert record.meta == {
        "unreadable": [],
        "duplicates": [],
        "class_names": [],
        "splits": {"train": 100},
        "image_size": 8,
    }
    table = store.read_table(record)
    assert table["sample_id"].to_pylist() == found.sample_ids
    assert set(table["split"].to_pylist()) == {"train"}
    levels = [np.frombuffer(image, np.uint8)[0] for image in table["image"].to_pylist()]
    assert levels == [int(Path(name).stem) for name in found.sample_ids]


def test_an_unreadable_image_is_left_out_and_counted(ray_session: None, store: Store, many: Path) -> None:
    (many / "1" / "001.png").write_bytes(b"broken")  # exactly a hundredth
    config = at(many, image_size=8)
    found = index(config, 0)
    record = ingest.build(store, asked_for(found), config, found)
    assert record.rows == 99
    assert [row["sample_id"] for row in record.meta["unreadable"]] == ["1/001.png"]
    assert record.meta["splits"] == {"train": 99}


def test_too_many_unreadable_images_blame_the_pool(ray_session: None, store: Store, many: Path) -> None:
    for number in (1, 4):
        (many / "1" / f"{number:03d}.png").write_bytes(b"broken")
    config = at(many, image_size=8)
    found = index(config, 0)
    with pytest.raises(InputError, match="2 of 100 images cannot be read") as caught:
        ingest.build(store, asked_for(found), config, found)
    assert not str(caught.value).startswith("dataset:")
