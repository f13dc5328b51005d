"""`sweeper init`'s look at a dataset: it counts what a run will see, and names what should be mended before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photos import copy, folder_of, photo

from sweeper import survey as surveys
from sweeper.datasets import image_folder
from sweeper.errors import InputError
from sweeper.survey import Survey, listed, recognise, survey
from sweeper.survey_table import remarks, table, warnings


def seen(root: Path) -> Survey:
    dataset = recognise(str(root))
    return survey(dataset, listed(dataset, seed=0))


def said(found: Survey) -> str:
    return "\n".join(warnings(found))


def test_it_counts_what_a_run_will_see(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"cat": 12, "dog": 10})
    told: list[int] = []
    dataset = recognise(str(root))
    found = survey(dataset, listed(dataset, seed=0), told.append)
    index = image_folder.index(image_folder.Config(root=str(root)), 0)
    assert found.index.content == index.content
    assert found.index.splits == index.splits
    assert sum(told) == len(found.looks) == 22
    assert found.drawn == ("val", "test")
    assert (found.short_side, found.formats, found.unreadable) == (40, {".png": 22}, [])


def test_the_table_has_a_row_for_each_split(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            photo(tmp_path / split / "cat" / f"{number}.png", 10 * count + number, 64, 32, grey=True)
            photo(tmp_path / split / "dog" / f"{number}.png", 20 * count + number, 20, 90)
    photo(tmp_path / "train" / "dog" / "large.png", 99, 100, 200)
    found = seen(tmp_path)
    rows = {row[0]: row for row in table(found).rows}
    assert list(rows) == ["train", "val", "test"], "test is taken from train"
    assert found.drawn == ("test",)
    assert rows["val"] == ("val", "4", "2", "2 cat", "2 cat", "64 x 32", "20 x 90", "64 x 32", "50%")
    assert "100 x 200" in rows["train"] + rows["test"]
    assert "test: not in the data; taken from train" in "\n".join(remarks(found))


def test_a_broken_file_is_named_with_its_reason_and_what_a_run_does(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"cat": 100, "dog": 100})
    (root / "cat" / "003.png").write_bytes((root / "cat" / "003.png").read_bytes()[:60])
    found = seen(root)
    assert [name for name, _ in found.unreadable] == ["cat/003.png"]
    assert "images that can not be read: 1 of 200 (0.5%); the run leaves them out\n  cat/003.png: " in said(found)
    for number in range(4, 7):
        (root / "cat" / f"{number:03d}.png").write_bytes(b"no image")
    assert "4 of 200 (2.0%); more than 1%, at which a run stops: repair or delete them first" in said(seen(root))


def test_pictures_in_two_splits_two_classes_and_two_files_are_told_apart(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 50), ("test", 80)):
        for number in range(8):
            photo(tmp_path / split / "cat" / f"{number}.png", seed + number)
            photo(tmp_path / split / "dog" / f"{number}.png", 1000 + seed + number)
    copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "cat" / "leaked.png")
    copy(tmp_path / "train" / "cat" / "1.png", tmp_path / "train" / "cat" / "copy.png")
    copy(tmp_path / "train" / "cat" / "2.png", tmp_path / "train" / "dog" / "misplaced.png")
    lines = said(seen(tmp_path))
    assert (
        "pictures of test that are in train, too, and flatter its accuracy: 1; take them out of train or of test"
        in (lines)
    )
    assert "  test/cat/leaked.png is train/cat/0.png" in lines
    assert "the same picture in several classes: 1; keep each under the class that it is" in lines
    assert "  train/cat/2.png and train/dog/misplaced.png" in lines
    assert "copies of a picture within its split: 1; harmless" in lines
    assert "  train/cat/1.png and train/cat/copy.png" in lines


def test_clean_data_of_some_size_has_no_warning(tmp_path: Path) -> None:
    for start, split, count in ((0, "train", 10), (100, "val", 50), (200, "test", 50)):
        for seed in range(start, start + count):
            photo(tmp_path / split / "cat" / f"{seed}.png", seed, 8, 8)
            photo(tmp_path / split / "dog" / f"{seed}.png", 1000 + seed, 9, 9)
    assert said(seen(tmp_path)) == ""


@pytest.mark.parametrize(
    ("classes", "warning"),
    [
        ({"cat": 20, "dog": 5}, "classes with fewer than 5 training images: dog (3)"),
        ({"cat": 90, "dog": 6}, "the largest class has 16 times the images of the smallest"),
        ({"cat": 20, "dog": 20}, "val has 6 images: one of them is 16.7% of its accuracy"),
        ({"cat": 9, "New folder (2)": 9}, "folders that do not sound like classes: New folder (2)"),
        ({"fire truck": 9, "Fire_Truck": 9}, "classes whose names hardly differ: Fire_Truck, fire truck"),
        ({"0": 9, "1": 9}, "class names are numbers"),
    ],
)
def test_what_is_odd_about_the_classes_is_told(tmp_path: Path, classes: dict[str, int], warning: str) -> None:
    assert warning in said(seen(folder_of(tmp_path, classes)))


def test_of_many_images_some_are_looked_at_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "MOST_LOOKED", 10)
    found = seen(folder_of(tmp_path, {"cat": 20, "dog": 20}))
    assert sorted(found.looks) == list(range(0, 40, 4))
    assert "of 40 images, evenly drawn" in "\n".join(remarks(found))


def test_parquet_files_and_shards_are_recognised(tmp_path: Path) -> None:
    pictures = [photo(tmp_path / "made" / f"{number}.png", number).read_bytes() for number in range(20)]
    rows = {"image": pictures, "label": ["cat", "dog"] * 10}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "rows" / "train.parquet")
    found = seen(tmp_path / "rows")
    assert found.dataset.kind == "parquet"  # type: ignore[attr-defined]
    assert found.index.class_names == ("cat", "dog")
    assert (found.short_side, found.formats, found.drawn) == (40, {}, ())
    assert recognise(str(tmp_path / "a.tar")).kind == "webdataset"  # type: ignore[attr-defined]
    assert recognise("s3://bucket/photos").kind == "image_folder"  # type: ignore[attr-defined]


def test_a_folder_without_classes_is_refused_as_by_a_run(tmp_path: Path) -> None:
    photo(tmp_path / "1.png", 1)
    with pytest.raises(InputError, match="images lie directly in the folder and have no class"):
        seen(tmp_path)
