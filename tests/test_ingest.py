"""The images stage on the shared Ray: what is stored, what is refused, and that it is quiet."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeper import duplicates, ingest, shards
from sweeper.console import Console
from sweeper.datasets import DatasetIndex, digits, image_folder, unlabelled_folder
from sweeper.driver import _report
from sweeper.errors import InputError, RunFailed
from sweeper.ingest import ImageWorker, build
from sweeper.pixels import fit_square
from sweeper.plan import Artifact, artifact
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
    wanted, told = asked_for(index), list[tuple[int, int]]()
    record = build(store, wanted, folder, index, progress=lambda rows, size=0, **_: told.append((rows, size)))
    assert sorted(rows for rows, _ in told) == [20] + [30] * 6
    (digests,) = [file for file in record.files if file.name.endswith(duplicates.FILE)]
    assert sum(size for _, size in told) == sum(file.size for file in record.files) - digests.size
    assert (record.key, record.kind, record.rows, record.charge) == (wanted.key, "images", 200, None)
    assert len(record.files) == 7 + 1  # and the digests
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
    plan = SimpleNamespace(images=wanted, pools={}, adapt={}, synthetic={})
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
    size = duplicates.DIGEST_BYTES
    index = DatasetIndex(
        class_names=("a", "b"),
        sample_ids=[str(i) for i in range(100)],
        labels=np.zeros(100, dtype=np.int64),
        splits=["test"] * 40 + ["train"] * 60,
        sources=[""] * 100,
        content="",
    )
    assert duplicates.across_splits(bytes(100 * size), index) == []
    assert duplicates.across_splits(b"".join(n.to_bytes(size, "big") for n in range(1, 101)), index) == []
    (found,) = duplicates.across_splits(b"\1" * (100 * size), index)
    assert (found["splits"], found["count"]) == (["train", "test"], 40)
    assert len(found["examples"]) == duplicates.MAX_EXAMPLES


def test_images_of_val_and_test_that_a_pool_holds_are_told_of(
    store: Store, folder: image_folder.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that is pre-trained on them has seen what it is chosen, or judged, by; those of train are no matter."""
    monkeypatch.setattr(ingest, "_block_rows", lambda *_: 30)
    monkeypatch.setattr(shards, "run", lambda rows, make, *_: [make()(block) for block in rows])
    index = image_folder.index(folder, 0)
    by_split = {split: [s for s, is_in in zip(index.sample_ids, index.splits, strict=True) if is_in == split]
                for split in ("train", "val", "test")}  # fmt: skip
    copied = [*by_split["train"][:5], *by_split["val"][:1], *by_split["test"][:3]]
    (tmp_path / "pool").mkdir()
    for number, name in enumerate(copied):
        Image.open(Path(folder.root) / name).save(tmp_path / "pool" / f"{number}.bmp")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "pool" / "of its own.png")
    config = unlabelled_folder.Config(root=str(tmp_path / "pool"), image_size=8)
    pool = unlabelled_folder.index(config, 0)
    wanted = {"task": (folder, index, asked_for(index)), "pool": (config, pool, asked_for(pool))}
    records = {item.key: build(store, item, dataset, found) for dataset, found, item in wanted.values()}
    plan: Any = SimpleNamespace(
        images=wanted["task"][2], index=index, pools={"more": wanted["pool"][2]}, pool_indexes={"more": pool}
    )
    val, test = duplicates.across_pools(plan, store, records)
    assert (val["splits"], val["count"], val["examples"]) == (["pool more", "val"], 1, [["5.bmp", copied[5]]])
    assert (test["splits"], test["count"]) == (["pool more", "test"], 3)
    assert sorted(test["examples"]) == [[f"{number}.bmp", copied[number]] for number in (6, 7, 8)]
    plan.pools = {}
    assert duplicates.across_pools(plan, store, records) == []


@pytest.mark.parametrize("damage", ["none", "truncated", "a flipped bit"])
def test_a_stage_that_was_cut_off_goes_on_by_row(
    store: Store, folder: image_folder.Config, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Three sessions with other bounds of their blocks: no image decoded twice, none missing, all in the old order."""
    broken = ["cat/000.png", "cat/040.png"]  # one is met before the stage is cut off, one after it
    for name in broken:
        (Path(folder.root) / name).write_bytes(b"broken")
    index = image_folder.index(folder, 0)
    wanted, prefix, decoded, told = asked_for(index), store.staging(), list[list[int]](), list[str]()

    def killed_after(blocks: int) -> Callable[..., list[shards.Summary]]:
        def run(rows: list[pa.Table], make: Any, shape: shards.Shape, progress: Any) -> list[shards.Summary]:
            worker = make()
            kept = rows if blocks == 0 else rows[1 : 1 + blocks]  # as they come: the first one is not the first to end
            decoded.extend([block["row"][0].as_py(), len(block)] for block in kept)
            done = [worker(block) for block in kept]
            if blocks:
                raise KeyboardInterrupt
            return done

        return run

    for block_rows, blocks in ((30, 2), (11, 3)):  # 30..89, then 11..29 and 90..
        monkeypatch.setattr(ingest, "_block_rows", lambda *_, rows=block_rows: rows)
        monkeypatch.setattr(shards, "run", killed_after(blocks))
        with pytest.raises(KeyboardInterrupt):
            build(store, wanted, folder, index, prefix=prefix)
    assert decoded == [[30, 30], [60, 30], [11, 11], [22, 8], [90, 11]]
    if damage != "none":
        (path,) = Path(store.path(prefix)).rglob("images-0000000060.parquet")
        data = path.read_bytes()
        chunk = pq.read_metadata(path).row_group(0).column(3)
        place = chunk.data_page_offset + chunk.total_compressed_size - 5  # among the pixels
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        path.write_bytes(data[:-9] if damage == "truncated" else flipped)
    monkeypatch.setattr(shards, "run", killed_after(0))
    del decoded[:]
    record = build(store, wanted, folder, index, prefix=prefix, tell=told.append)
    again = [[60, 11], [71, 11], [82, 8]] if damage != "none" else []
    assert decoded == [[0, 11], *again, *([start, 11] for start in range(101, 200, 11))]
    assert told == [f"resumed: {59 if again else 89} of 199 images were there"]

    undisturbed = build(Store(store.uri + "-other"), wanted, folder, index)
    assert record.meta == undisturbed.meta
    assert [row["sample_id"] for row in record.meta["unreadable"]] == broken
    other = Store(store.uri + "-other")
    assert store.read_table(record).equals(other.read_table(undisturbed))
    (mine,), (its,) = ([e.name for e in r.files if e.name.endswith(duplicates.FILE)] for r in (record, undisturbed))
    assert store.read_bytes(record, mine) == other.read_bytes(undisturbed, its)


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
    written = shards.written(store, prefix, ["sample_id"])["sample_id"].to_pylist()
    with pytest.raises(InputError, match=r"every image of val is unreadable \(299\)"):
        ingest._counts(written, index, {"299": "broken"})
    with pytest.raises(RunFailed, match="299 rows with 299 different ids were written, expected 300"):
        ingest._counts(written, index, {})


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
    assert len(summary["digests"]) == 20 * duplicates.DIGEST_BYTES
    assert shards.written(store, prefix, ["sample_id"])["sample_id"].to_pylist() == index.sample_ids[:20]


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
