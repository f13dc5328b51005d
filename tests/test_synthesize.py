"""Synthetic images: an image is a function of (seed, class, index), and a larger request keeps what is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_sweep import SIZE, Built, Stages, make, space_tree
from test_shards import inline

from sweeper import shards, staged, synthesize
from sweeper.artifacts import build as build_all
from sweeper.errors import RunFailed
from sweeper.plan import Artifact, Plan
from sweeper.stage import Stage
from sweeper.store import Record, Store
from sweeper.synthesize import GeneratorWorker, image_seed, job_of


def asked_for(built: Built, folder: Path, store: Store, ratio: float) -> Plan:
    """The plan of the small sweep with another number of synthetic images: `ratio` x 20."""
    trial = {**space_tree(built.generator)["trial"], "synthetic": {"source": "tiny", "ratio": ratio}}
    return make(space_tree(built.generator, trial=trial), folder, store)[2]


def rows_of(part: Artifact) -> pa.Table:
    names, indices = part.spec["class_names"], range(part.spec["start"], part.spec["stop"])
    pairs = [(label, index) for index in indices for label in range(len(names))]
    return pa.table({"label": [label for label, _ in pairs], "index": [index for _, index in pairs]})


def drawn(built: Built, store: Store, part: Artifact, batches: Iterable[pa.Table], **changes: Any) -> dict[str, bytes]:
    """Images by sample id, drawn here by one worker in the given batches."""
    prefix = store.staging()
    job = job_of(part, built.config.synthetic["tiny"].model_copy(update=changes), built.config.teachers)
    worker = GeneratorWorker(store=store, prefix=prefix, job=job)
    assert sum(worker(batch)["rows"] for batch in batches) == part.units
    return images(shards.written(store, prefix, ["sample_id", "image"]))


def images(table: pa.Table) -> dict[str, bytes]:
    return dict(zip(table["sample_id"].to_pylist(), table["image"].to_pylist(), strict=True))


def record_of(built: Built) -> tuple[Artifact, Record]:
    (part,) = built.plan.synthetic["tiny"]
    return part, built.records[part.key]


def test_the_artifact_holds_each_image_once_with_its_label(built: Built) -> None:
    part, record = record_of(built)
    table = built.store.read_table(record)
    assert record.rows == len(table) == part.units == 20
    assert sorted(table["sample_id"].to_pylist()) == sorted(f"synthetic/{c}/{i}" for c in range(10) for i in range(2))
    assert [f"synthetic/{row['label']}/{row['index']}" for row in table.to_pylist()] == table["sample_id"].to_pylist()
    assert {len(image) for image in table["image"].to_pylist()} == {SIZE * SIZE * 3}
    assert len(set(table["image"].to_pylist())) == 20
    assert record.charge is not None
    assert (record.charge.stage, record.charge.units) == ("synthetic", 20)
    assert record.charge.seconds > 0


def test_an_image_does_not_depend_on_the_sharding(built: Built, store: Store) -> None:
    """Ray's pass in batches of 64, one at a time, in threes backwards, and shuffled: bit by bit the same images."""
    part, record = record_of(built)
    expected, rows = images(built.store.read_table(record)), rows_of(part)
    backwards = rows.take(np.arange(len(rows))[::-1])
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    shardings = {
        "ones": [rows.slice(i, 1) for i in range(len(rows))],
        "threes": [backwards.slice(i, 3) for i in range(0, len(rows), 3)],
        "two unequal": [shuffled.slice(0, 13), shuffled.slice(13)],
    }
    for name, batches in shardings.items():
        assert drawn(built, store, part, batches) == expected, name


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_pipelines_batch_size_changes_rounding_at_most(built: Built, store: Store, batch_size: int) -> None:
    part, record = record_of(built)
    expected = images(built.store.read_table(record))
    got = drawn(built, store, part, [rows_of(part)], batch_size=batch_size)
    for sample_id, image in expected.items():
        left, right = (np.frombuffer(raw, dtype=np.uint8).astype(int) for raw in (image, got[sample_id]))
        assert np.abs(left - right).max() <= 1


def test_asking_for_more_makes_only_the_new_ones(own: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 images a class are there, 4 are asked for, then 3, which need nothing; and 4 at once are the same images."""
    monkeypatch.setattr(shards, "run", inline)
    old, record = record_of(own)
    store = own.store
    more = asked_for(own, tmp_path, store, 2.0)
    first, second = more.synthetic["tiny"]
    assert first.key == old.key
    assert (second.spec["start"], second.spec["stop"], second.units) == (2, 4, 20)
    assert [item.key for item in more.missing(store) if item.kind == "synthetic"] == [second.key]
    made = synthesize.build(store, second, own.config.synthetic["tiny"])
    assert made.rows == 20
    assert store.get(old.key) == record
    fewer = asked_for(own, tmp_path, store, 1.5)
    assert [part.key for part in fewer.synthetic["tiny"]] == [first.key, second.key]

    at_once = Store(str(tmp_path / "other"))
    (whole,) = asked_for(own, tmp_path, at_once, 2.0).synthetic["tiny"]
    everything = synthesize.build(at_once, whole, own.config.synthetic["tiny"])
    assert images(at_once.read_table(everything)) == images(store.read_table(record)) | images(store.read_table(made))


def test_an_image_that_is_missing_fails_the_stage_and_nothing_stays(
    built: Built, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, _ = record_of(built)

    def forgetful(rows: pa.Table, *rest: Any) -> list[shards.Summary]:
        return inline(rows.slice(1), *rest)

    monkeypatch.setattr(shards, "run", forgetful)
    with pytest.raises(RunFailed, match="19 of 20 were written, in 19 rows"):
        synthesize.build(store, part, built.config.synthetic["tiny"])
    assert store.get(part.key) is None
    assert not [path for path in Path(store.path("data")).rglob("*") if path.is_file()]


def killed_after(batches: int, error: BaseException) -> Any:
    """A pass that ends with an error when it has done so many batches."""

    def run(rows: pa.Table, make: Any, shape: shards.Shape, progress: Any = None) -> list[shards.Summary]:
        worker = make()
        for start in range(0, batches * shape.batch_size, shape.batch_size):
            worker(rows.slice(start, shape.batch_size))
        raise error

    return run


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunFailed("store: s3://b failed"), SystemError("worker lost")])
def test_a_stage_that_was_cut_off_goes_on_by_row(
    built: Built, store: Store, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Three sessions with other bounds of their batches: no image twice, none missing, and every second is charged."""
    part, record = record_of(built)
    prefix, config, told = store.staging(), built.config.synthetic["tiny"], list[str]()
    counter = Stage("synthetic", 20, "images")
    drawn_rows, spent = list[int](), list[float]()
    real = GeneratorWorker.__call__

    def watched(self: GeneratorWorker, rows: pa.Table) -> shards.Summary:
        drawn_rows.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(GeneratorWorker, "__call__", watched)
    for batch_size, batches in ((3, 2), (4, 1)):
        monkeypatch.setattr(synthesize, "BATCH_ROWS", batch_size)
        monkeypatch.setattr(shards, "run", killed_after(batches, error))
        with pytest.raises(type(error)):
            synthesize.build(store, part, config, prefix=prefix)
    spent += [note["seconds"] for note in notes_below(store, prefix)]
    assert (sum(drawn_rows), len(spent)) == (10, 3)
    assert store.get(part.key) is None

    monkeypatch.setattr(synthesize, "BATCH_ROWS", 7)
    monkeypatch.setattr(shards, "run", inline)
    made = synthesize.build(store, part, config, prefix=prefix, tell=told.append, progress=counter.advance)
    assert drawn_rows[3:] == [7, 3]
    assert told == ["resumed: 10 of 20 images were there"]
    assert (counter.done, counter.found) == (10, 10)
    table = store.read_table(made)
    assert sorted(table["sample_id"].to_pylist()) == sorted(images(built.store.read_table(record)))
    assert images(table) == images(built.store.read_table(record))
    assert made.charge is not None
    every = [note["seconds"] for note in notes_below(store, prefix)]
    assert set(spent) < set(every)
    assert made.charge.seconds == pytest.approx(sum(every))
    assert (made.rows, made.charge.units, made.charge.device) == (20, 20, "cpu")


def notes_below(store: Store, prefix: str) -> list[staged.Note]:
    return staged.read(store, prefix, list(store.storage.files(prefix, deep=False)), ["sample_id"])[1]


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "rows of another build", "rows twice", "not ours"])
def test_what_cannot_be_gone_on_with_is_drawn_anew(
    built: Built, store: Store, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    part, record = record_of(built)
    prefix, config = store.staging(), built.config.synthetic["tiny"]
    monkeypatch.setattr(synthesize, "BATCH_ROWS", 5)
    monkeypatch.setattr(shards, "run", killed_after(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        synthesize.build(store, part, config, prefix=prefix)
    (path,) = Path(store.path(prefix)).rglob("*.parquet")
    data, table = path.read_bytes(), pq.read_table(path)
    if damage == "truncated":
        path.write_bytes(data[:-9])
    elif damage == "a flipped bit":
        chunk = pq.read_metadata(path).row_group(0).column(table.column_names.index("image"))
        place = chunk.data_page_offset - 5  # the last of the pixels, which lie in the dictionary before
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif damage == "rows of another build":
        others = [f"synthetic/{label}/7" for label in range(len(table))]
        pq.write_table(table.set_column(0, "sample_id", [others]), path)
    elif damage == "rows twice":
        pq.write_table(pa.concat_tables([table, table]), path)
    else:
        (path.parent / "more.parquet").write_bytes(data)  # what a rival wrote that had been taken for dead
        (path.parent / "README").write_bytes(b"not a table")
    monkeypatch.setattr(shards, "run", inline)
    told = list[str]()
    made = synthesize.build(store, part, config, prefix=prefix, tell=told.append)
    assert told == (["resumed: 5 of 20 images were there"] if damage == "not ours" else [])
    table = store.read_table(made)
    assert (len(table), made.rows) == (20, 20)
    assert images(table) == images(built.store.read_table(record))


def test_a_rival_that_writes_on_after_the_commit_changes_nothing(
    built: Built, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for dead, and works below the same prefix; with the same rows, and perhaps other bits."""
    part, _ = record_of(built)
    prefix, config = store.staging(), built.config.synthetic["tiny"]
    rivals = list[GeneratorWorker]()

    def run(rows: pa.Table, make: Any, shape: shards.Shape, progress: Any = None) -> list[shards.Summary]:
        rivals.append(make())
        if len(rivals) == 1:
            raise KeyboardInterrupt
        rivals[0](rows)  # while we work
        return inline(rows, make, shape, progress)

    monkeypatch.setattr(shards, "run", run)
    with pytest.raises(KeyboardInterrupt):
        synthesize.build(store, part, config, prefix=prefix)
    made = synthesize.build(store, part, config, prefix=prefix)
    rivals[0](rows_of(part).slice(0, 3))  # and when we are done
    assert (len(store.read_table(made)), made.rows) == (20, 20)
    assert store.verify(deep=True) == []
    extra = set(Path(store.path(prefix)).rglob("*.parquet")) - {
        Path(store.path(f"{prefix}/{entry.name}")) for entry in made.files
    }
    assert {store.path(item.path) for item in store.gc(grace_s=-1)} == {str(path) for path in extra}
    assert store.get(part.key) == made


def test_a_driver_goes_on_where_another_was_cut_off(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the builder of all artifacts: the note in the store leads the second driver to the first one's files."""
    part, record = record_of(own)
    own.store.remove(part.key)
    monkeypatch.setattr(synthesize, "BATCH_ROWS", 4)
    monkeypatch.setattr(shards, "run", killed_after(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        build_all(own.plan, own.store, Stages())
    monkeypatch.setattr(shards, "run", inline)
    told, stages = list[str](), Stages()
    records = build_all(own.plan, Store(own.store.uri), stages, told.append)
    assert told == ["resumed: 12 of 20 images were there"]
    assert [(stage.total, stage.done) for stage in stages.opened] == [(20, 12)]  # `inline` tells nothing of the rest
    assert images(own.store.read_table(records[part.key])) == images(own.store.read_table(record))
    assert not list(Path(own.store.path("pending")).glob("[!.]*"))


def test_seeds_are_an_images_own() -> None:
    seeds = {image_seed(seed, label, index) for seed in range(4) for label in range(10) for index in range(100)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert image_seed(0, 3, 7) == image_seed(0, 3, 7)
    torch.Generator().manual_seed(max(seeds))


def test_a_finished_stage_opens_no_stage(built: Built) -> None:
    def nothing(*_: Any) -> Any:
        raise AssertionError("something is built again")

    assert build_all(built.plan, built.store, nothing) == dict(built.records)
