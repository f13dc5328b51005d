"""The images stage on the shared Ray: what is stored, what is refused, and that it is quiet."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sweeper import ingest
from sweeper.console import Console
from sweeper.datasets import DatasetIndex, digits, image_folder
from sweeper.errors import InputError, RunFailed
from sweeper.ingest import ImageWorker, build, fit_square
from sweeper.plan import Artifact, artifact
from sweeper.run import _report
from sweeper.store import Store


def asked_for(index: DatasetIndex) -> Artifact:
    return artifact("images", {"content": index.content}, "test", len(index))


@pytest.fixture
def folder(tmp_path: Path) -> image_folder.Config:
    """200 images of 20 x 12 pixels in two classes, each of its own colour."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(100):
            colour = (number, 50 if name == "cat" else 200, 7)
            Image.new("RGB", (20, 12), colour).save(tmp_path / "pets" / name / f"{number:03d}.png")
    return image_folder.Config(root=str(tmp_path / "pets"), image_size=8)


def break_files(config: image_folder.Config, count: int) -> list[str]:
    ids = [f"cat/{number:03d}.png" for number in range(count)]
    for name in ids:
        (Path(config.root) / name).write_bytes(b"broken")
    return ids


def images_of(table: pa.Table, size: int) -> np.ndarray:
    return np.frombuffer(b"".join(table["image"].to_pylist()), dtype=np.uint8).reshape(len(table), size, size, 3)


# ------------------------------------------------------------------------------------------------- one image


def test_square_image_is_pillows_bicubic() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((12, 12), Image.Resampling.BICUBIC))
    for image in (noise, Image.fromarray(noise)):
        got = np.frombuffer(fit_square(image, 12), dtype=np.uint8).reshape(12, 12, 3)
        np.testing.assert_array_equal(got, expected)
    same = np.frombuffer(fit_square(noise, 40), dtype=np.uint8).reshape(40, 40, 3)
    np.testing.assert_array_equal(same, noise)


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_is_kept(wide: bool) -> None:
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, 10:20] = 255
    image = image if wide else image.transpose(1, 0, 2)
    assert set(fit_square(np.ascontiguousarray(image), 10)) == {255}


def test_a_very_long_image_stays_cheap() -> None:
    assert len(fit_square(Image.new("RGB", (60_000, 1)), 64)) == 64 * 64 * 3


# ------------------------------------------------------------------------------------------------- the stage


def test_every_image_once_in_the_order_of_the_index(
    ray_session: None, store: Store, folder: image_folder.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MIN_BLOCK_ROWS", 30)
    index = image_folder.index(folder, 0)
    wanted, told = asked_for(index), list[int]()
    record = build(store, wanted, folder, index, progress=told.append)
    assert told == [30] * 6 + [20]
    assert (record.key, record.kind, record.rows, record.charge) == (wanted.key, "images", 200, None)
    assert len(record.files) == 7
    assert record.meta == {
        "unreadable": [],
        "duplicates": [],
        "class_names": ["cat", "dog"],
        "splits": {"train": 140, "val": 30, "test": 30},
        "image_size": 8,
    }
    table = store.read_table(record)
    assert table.schema.equals(ingest.SCHEMA)
    assert table["sample_id"].to_pylist() == index.sample_ids
    assert table["label"].to_pylist() == index.labels.tolist()
    assert table["split"].to_pylist() == index.splits
    colours = images_of(table, 8)[:, 3, 3].tolist()
    assert colours == [[number, green, 7] for green in (50, 200) for number in range(100)]


def test_a_few_unreadable_images_are_dropped_and_listed(
    ray_session: None, store: Store, folder: image_folder.Config
) -> None:
    broken = break_files(folder, 2)  # exactly 1%
    index = image_folder.index(folder, 0)
    record = build(store, asked_for(index), folder, index)
    assert record.rows == 198
    assert [row["sample_id"] for row in record.meta["unreadable"]] == broken
    assert all("UnidentifiedImageError" in row["error"] for row in record.meta["unreadable"])
    assert sum(record.meta["splits"].values()) == 198
    table = store.read_table(record)
    assert table["sample_id"].to_pylist() == [s for s in index.sample_ids if s not in broken]
    assert images_of(table, 8)[0, 0, 0].tolist() == [2, 50, 7]


def test_images_in_two_splits_are_kept_and_told_of_before_the_search(
    ray_session: None, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their pixels: the copies in test are in another format, with another name, under another class."""
    monkeypatch.setattr(ingest, "MIN_BLOCK_ROWS", 30)
    sizes = {"train": 100, "val": 12, "test": 12}
    for split, count in sizes.items():
        for name in ("cat", "dog"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                colour = (number, {"train": 0, "val": 90, "test": 180}[split], 50 if name == "cat" else 200)
                Image.new("RGB", (9, 9), colour).save(tmp_path / "set" / split / name / f"{number:03d}.png")
    (tmp_path / "set" / "train" / "cat" / "a\nb.png").write_bytes(b"broken")
    for number in range(11):
        Image.new("RGB", (20, 20), (number, 0, 50)).save(tmp_path / "set" / "test" / "dog" / f"copy{number:02d}.bmp")
    Image.new("RGB", (5, 5), (3, 90, 200)).save(tmp_path / "set" / "test" / "cat" / "x\ny.bmp")
    Image.new("RGB", (5, 5), (0, 90, 200)).save(tmp_path / "set" / "val" / "dog" / "twice.bmp")  # within one split
    config = image_folder.Config(root=str(tmp_path / "set"), image_size=8)
    index = image_folder.index(config, 0)
    wanted = asked_for(index)
    record = build(store, wanted, config, index)
    assert record.rows == len(index) - 1
    first, second = record.meta["duplicates"]
    assert (first["splits"], first["count"]) == (["train", "test"], 11)
    assert first["examples"] == [[f"train/cat/{n:03d}.png", f"test/dog/copy{n:02d}.bmp"] for n in range(11)]
    assert second == {"splits": ["val", "test"], "count": 1, "examples": [["val/dog/003.png", "test/cat/x\ny.bmp"]]}

    shown = io.StringIO()
    plan = SimpleNamespace(images=wanted, pools={}, adapt={})
    _report(plan, {wanted.key: record}, Console(stream=shown))  # type: ignore[arg-type]
    assert shown.getvalue().splitlines() == [
        "1 of 262 images could not be read and are left out:",
        "  train/cat/a\\nb.png: UnidentifiedImageError: not an image format that Pillow knows",
        "images of test that are in train, too (by their pixels), and flatter its accuracy: 11",
        *(f"  test/dog/copy{n:02d}.bmp is train/cat/{n:03d}.png" for n in range(10)),
        "  and others; take them out of one of the two",
        "images of test that are in val, too (by their pixels), and flatter its accuracy: 1",
        "  test/cat/x\\ny.bmp is val/dog/003.png",
    ]


def test_duplicates_are_those_between_splits_and_examples_are_few() -> None:
    """Within one split they only weigh more; an unreadable image is the same as no other one."""
    size = ingest.DIGEST_BYTES
    index = DatasetIndex(
        class_names=("a", "b"),
        sample_ids=[str(i) for i in range(100)],
        labels=np.zeros(100, dtype=np.int64),
        splits=["test"] * 40 + ["train"] * 60,
        sources=[""] * 100,
        content="",
    )
    assert ingest.across_splits(bytes(100 * size), index) == []
    assert ingest.across_splits(b"".join(n.to_bytes(size, "big") for n in range(1, 101)), index) == []
    (found,) = ingest.across_splits(b"\1" * (100 * size), index)
    assert (found["splits"], found["count"]) == (["train", "test"], 40)
    assert len(found["examples"]) == ingest.MAX_EXAMPLES


def test_more_than_a_hundredth_is_refused_and_nothing_stays(
    ray_session: None, store: Store, folder: image_folder.Config
) -> None:
    break_files(folder, 7)
    index = image_folder.index(folder, 0)
    with pytest.raises(InputError) as caught:
        build(store, asked_for(index), folder, index)
    message = str(caught.value)
    assert "7 of 200 images cannot be read (3.5%, at most 1% is allowed): cat/000.png (Unidentified" in message
    assert "cat/004.png" in message
    assert "cat/005.png" not in message
    assert "and 2 more" in message
    assert store.get(asked_for(index).key) is None
    assert not any(Path(store.path("data")).rglob("*"))


def test_losing_the_only_image_of_a_split_is_refused(store: Store) -> None:
    index = DatasetIndex(
        class_names=("a", "b"),
        sample_ids=[str(i) for i in range(300)],
        labels=np.array([0, 1] * 150),
        splits=["train"] * 299 + ["val"],
        sources=[""] * 300,
        content="",
    )
    prefix = store.staging()
    config = digits.Config()
    rows = [i for i in range(300) if i != 299]
    table = pa.table(
        {
            "row": rows,
            "sample_id": [str(i) for i in rows],
            "label": pa.array([i % 2 for i in rows], pa.int32()),
            "split": ["train"] * 299,
            "source": [f"digits:{i}" for i in rows],
        }
    )
    ImageWorker(store=store, prefix=prefix, dataset=config)(table)
    with pytest.raises(InputError, match=r"every image of val is unreadable \(299\)"):
        ingest._check(store, prefix, index, {"299": "broken"})
    with pytest.raises(RunFailed, match="299 rows with 299 different ids were written, expected 300"):
        ingest._check(store, prefix, index, {})


def test_a_block_that_runs_twice_leaves_its_rows_once(store: Store) -> None:
    index = digits.index(digits.Config(), 0)
    prefix = store.staging()
    table = pa.table(
        {
            "row": range(20),
            "sample_id": index.sample_ids[:20],
            "label": pa.array(index.labels[:20], pa.int32()),
            "split": index.splits[:20],
            "source": index.sources[:20],
        }
    )
    worker = ImageWorker(store=store, prefix=prefix, dataset=digits.Config())
    summary = worker(table)
    assert summary == worker(table)
    assert (summary["rows"], summary["first"], summary["unreadable"]) == (20, 0, "{}")
    assert len(summary["digests"]) == 20 * ingest.DIGEST_BYTES
    assert ingest.shards.written(store, prefix, ["sample_id"])["sample_id"].to_pylist() == index.sample_ids[:20]


def test_nothing_on_the_terminal(ray_session: None, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    config = digits.Config(train_per_class=3)
    index = digits.index(config, 0)
    capfd.readouterr()
    record = build(store, asked_for(index), config, index)
    assert capfd.readouterr() == ("", "")
    assert record.rows == len(index)


def test_workers_do_not_import_torch(tmp_path: Path) -> None:
    """What a task runs, in a fresh interpreter: importing torch would cost each worker process 5 s."""
    code = """
import sys
import pyarrow as pa
from sweeper.datasets import digits
from sweeper.ingest import ImageWorker
from sweeper.store import Store
label = pa.array([0], pa.int32())
row = pa.table({"row": [0], "sample_id": ["a"], "label": label, "split": ["val"], "source": ["digits:5"]})
store = Store(sys.argv[1])
print(ImageWorker(store=store, prefix=store.staging(), dataset=digits.Config())(row)["rows"])
print([name for name in ("torch", "timm", "diffusers", "optuna") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ingest.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["1", "[]"]


@pytest.mark.parametrize(
    ("rows", "size", "cpus", "expected"),
    [(100, 32, 2, 512), (1797, 32, 2, 512), (100_000, 32, 4, 6250), (100_000, 32, 1, 21845), (10**6, 224, 64, 445)],
)
def test_block_rows(monkeypatch: pytest.MonkeyPatch, rows: int, size: int, cpus: int, expected: int) -> None:
    monkeypatch.setattr(ingest.ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    assert ingest._block_rows(rows, size) == expected
