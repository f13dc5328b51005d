"""Teachers' targets: one pass, the right rows, what the teacher says live for the same views; a wrong one is caught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_sweep import SEED, SIZE, Built, Stages, make, space_tree
from test_shards import inline

from sweeper import adapted, artifacts, shards, staged, targets, views
from sweeper.batches import image_split
from sweeper.errors import RunFailed
from sweeper.plan import Artifact
from sweeper.stage import Stage
from sweeper.store import Record, Store
from sweeper.targets import PassSpec, TargetsWorker, TeacherRef

VIEWS = 3


def image_sets(built: Built) -> dict[str, pa.Table]:
    """The rows that a pass reads, by the key of the image set: real training images and synthetic ones."""
    (synthetic,) = built.plan.synthetic["tiny"]
    real = built.store.read_table(built.records[built.plan.images.key])
    return {
        built.plan.images.key: real.filter(np.array(real["split"].to_pylist()) == "train"),
        synthetic.key: built.store.read_table(built.records[synthetic.key]),
    }


def a_pass(built: Built, store: Store, **changes: Any) -> tuple[PassSpec, dict[tuple[str, str], Artifact]]:
    """The specification of the small sweep's pass over the real images into a store."""
    spec = PassSpec(
        teachers=tuple(
            TeacherRef(name, config, built.plan.adapt[name].key) for name, config in built.config.teachers.items()
        ),
        views=built.config.views,
        seed=SEED,
        class_names=built.plan.index.class_names,
        prefixes={built.plan.images.key: store.staging()},
    )
    wanted = {pair: item for pair, item in built.plan.targets.items() if pair[1] == built.plan.images.key}
    return replace(spec, **changes), wanted


def test_rows_are_unique_finite_and_what_the_teacher_says(built: Built) -> None:
    """All rows of all teachers and image sets against a live forward that was written here."""
    tables = image_sets(built)
    for (name, images_key), item in built.plan.targets.items():
        record, images = built.records[item.key], tables[images_key]
        table = built.store.read_table(record)
        assert set(table.column_names) == {"sample_id", "view", "box", "logits", "embedding", "pre_embedding"}
        ids, numbers = table["sample_id"].to_pylist(), table["view"].to_pylist()
        assert record.rows == len(table) == item.units == len(set(zip(ids, numbers, strict=True))) == 60
        assert set(ids) == set(images["sample_id"].to_pylist())
        assert set(numbers) == set(range(VIEWS))
        boxes = np.stack(table["box"].to_numpy(zero_copy_only=False))
        keys = np.array([views.sample_key(sample_id) for sample_id in ids], dtype=np.uint64)
        np.testing.assert_array_equal(boxes, views.draw_views(built.config.views, SEED, keys, np.array(numbers)))
        assert set(boxes[:, 4]) == {0.0, 1.0}

        teacher: Any = adapted.load_teacher(
            built.store, built.plan.adapt[name].key, built.config.teachers[name], built.plan.index.class_names
        )
        place = {sample_id: i for i, sample_id in enumerate(images["sample_id"].to_pylist())}
        pixels = image_split(images, SIZE).images_BCHW[[place[sample_id] for sample_id in ids]]
        with torch.no_grad():
            live = teacher(
                views.apply_views(pixels, torch.from_numpy(boxes), teacher.input_size, teacher.interpolation), pre=True
            )
        outputs = {"logits": live.logits_BK, "embedding": live.embedding_BD, "pre_embedding": live.pre_embedding_BD}
        for column, expected in outputs.items():
            cached = torch.from_numpy(np.stack(table[column].to_numpy(zero_copy_only=False)).astype(np.float32))
            assert torch.isfinite(cached).all()
            assert torch.nn.functional.cosine_similarity(cached, expected).min() >= 0.999
            torch.testing.assert_close(cached, expected, rtol=2e-3, atol=2e-3)  # fp16 has 11 bits
        assert record.meta["cosine"] >= targets.MIN_COSINE


def test_all_teachers_share_one_pass_and_its_files(built: Built) -> None:
    (stage,) = [stage for stage in built.stages.opened if stage.name.startswith("targets")]
    assert (stage.name, stage.total, stage.done) == ("targets (cnn, vit)", 120, 120)
    by_images: dict[str, list[Record]] = {}
    for (_, images_key), item in built.plan.targets.items():
        by_images.setdefault(images_key, []).append(built.records[item.key])
    assert len(by_images) == 2
    for cnn, vit in by_images.values():
        assert cnn.prefix == vit.prefix
        assert cnn.files == vit.files
        assert cnn.columns["logits"] != vit.columns["logits"]
        assert cnn.charge is not None
        assert vit.charge is not None
        assert cnn.charge.seconds != vit.charge.seconds > 0


def test_images_are_decoded_once_for_all_teachers(built: Built, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (images,) = [table for key, table in image_sets(built).items() if key == built.plan.images.key]
    whole = built.store.read_table(built.records[built.plan.images.key])
    position = {sample_id: i for i, sample_id in enumerate(whole["sample_id"].to_pylist())}
    rows = [position[sample_id] for sample_id in images["sample_id"].to_pylist()]
    spec, _ = a_pass(built, built.store)
    worker = TargetsWorker(store=built.store, spec=spec)
    decoded, read = list[int](), list[str]()
    read_table = Store.read_table
    monkeypatch.setattr(targets, "image_split", lambda t, size: decoded.append(len(t)) or image_split(t, size))
    monkeypatch.setattr(Store, "read_table", lambda self, r, *rest: read.append(r.kind) or read_table(self, r, *rest))
    key = built.plan.images.key
    for start in (0, 10):
        batch = pa.table({"images": [key] * 10, "row": rows[start : start + 10], "file": [""] * 10})
        assert worker(batch)["rows"] == 10 * VIEWS
    assert len(worker.teachers) == 2
    assert decoded == [10, 10]
    assert read == ["images"]
    built.store.discard(spec.prefixes[key])


def forgotten(built: Built) -> tuple[PassSpec, dict[tuple[str, str], Artifact]]:
    """A pass over the real images, whose targets are no longer in the store."""
    spec, wanted = a_pass(built, built.store)
    for item in wanted.values():
        built.store.remove(item.key)
    return spec, wanted


def assert_nothing_was_committed(built: Built, spec: PassSpec, wanted: Mapping[tuple[str, str], Artifact]) -> None:
    assert all(built.store.get(item.key) is None for item in wanted.values())
    assert not any(Path(built.store.path(prefix)).exists() for prefix in spec.prefixes.values())


@pytest.mark.parametrize("what", ["a flip", "a box", "another view's row"])
def test_a_wrong_view_is_caught(own: Built, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The pass draws its boxes wrongly, the check draws its own: a target of another view is never committed."""
    monkeypatch.setattr(shards, "run", inline)
    draw_views, drawn = views.draw_views, list[int]()

    def wrong_at_first(config: Any, seed: int, keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        boxes = draw_views(config, seed, keys, numbers)
        drawn.append(len(boxes))
        if len(drawn) == 1:
            match what:
                case "a flip":
                    boxes[:, 4] = 1 - boxes[:, 4]
                case "a box":
                    boxes[:, :2] = 0
                case _:
                    boxes = np.roll(boxes, 1, axis=0)
        return boxes

    monkeypatch.setattr(targets.views, "draw_views", wrong_at_first)
    spec, wanted = forgotten(own)
    with pytest.raises(RunFailed, match=r"differ from a live forward \(cosine -?0\.\d+, allowed: 0\.999\)"):
        targets.build(own.store, wanted, spec)
    assert_nothing_was_committed(own, spec, wanted)
    assert len(drawn) == 2


def test_missing_rows_and_non_finite_outputs_are_caught(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wanted = forgotten(own)
    monkeypatch.setattr(shards, "run", lambda rows, *rest: inline(rows.slice(1), *rest))
    with pytest.raises(RunFailed, match=r"57 of 60 \(sample, view\) rows were written, 57 rows in all"):
        targets.build(own.store, wanted, spec)
    assert_nothing_was_committed(own, spec, wanted)
    monkeypatch.setattr(shards, "run", inline)
    monkeypatch.setattr(
        targets,
        "view_targets",
        lambda *_: {"logits": np.full((60, 10), np.inf, np.float16), "embedding": np.zeros((60, 4), np.float16)},
    )
    spec, wanted = forgotten(own)
    with pytest.raises(RunFailed, match="teacher 'cnn': logits are not finite in fp16 on image set"):
        targets.build(own.store, wanted, spec)
    assert_nothing_was_committed(own, spec, wanted)


# ------------------------------------------------------------------------------------------------- going on by row


def cut_off(own: Built, monkeypatch: pytest.MonkeyPatch, images: int = 7) -> tuple[PassSpec, dict[Any, Artifact], Path]:
    """A pass over the real images of which one file was written when its driver was killed; and that file."""
    spec, wanted = forgotten(own)

    def run(rows: pa.Table, make: Any, *_: Any) -> list[shards.Summary]:
        make()(rows.slice(0, images))
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "run", run)
    with pytest.raises(KeyboardInterrupt):
        targets.build(own.store, wanted, spec)
    (path,) = Path(own.store.path(spec.prefixes[own.plan.images.key])).rglob("*.parquet")
    return spec, wanted, path


def test_a_pass_goes_on_by_row_and_checks_what_was_there(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wanted, path = cut_off(own, monkeypatch)
    seen, told, counter = list[pa.Table](), list[str](), Stage("targets", 20 * VIEWS, "views")
    monkeypatch.setattr(shards, "run", lambda rows, *rest: (seen.append(rows), inline(rows, *rest))[1])
    monkeypatch.setattr(targets, "BATCH_IMAGES", 6)
    made = targets.build(own.store, wanted, spec, tell=told.append, progress=counter.advance)
    (rows,) = seen
    assert told == ["resumed: 7 of 20 images were there"]
    assert (counter.done, counter.found) == (7 * VIEWS, 7 * VIEWS)
    assert [bool(file) for file in rows["file"].to_pylist()] == [False] * 13 + [True] * 7
    first, *others = [staged.read(own.store, r.prefix, [e.name for e in r.files], ["view"])[1] for r in made]
    assert all(notes == first for notes in others)
    for (name, _), record in zip(wanted, made, strict=True):
        columns = ["sample_id", "view", "box", "logits"]
        table, old = (own.store.read_table(one, columns) for one in (record, own.records[record.key]))
        assert record.rows == len(table) == 60
        assert sorted_rows(table).select(["sample_id", "view", "box"]) == sorted_rows(old).select(
            ["sample_id", "view", "box"]
        )
        got, expected = (np.stack(t["logits"].to_numpy(zero_copy_only=False)) for t in map(sorted_rows, (table, old)))
        np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=2e-3, atol=2e-3)
        assert record.charge is not None
        assert record.charge.seconds == pytest.approx(sum(note["seconds"][name] for note in first))
    assert len(first) == 4
    assert path.exists()


def sorted_rows(table: pa.Table) -> pa.Table:
    return table.sort_by([("sample_id", "ascending"), ("view", "ascending")]).combine_chunks().replace_schema_metadata()


def test_all_rows_there_and_nothing_committed(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last file and the records: nothing is computed, and the rows are checked all the same."""
    spec, wanted, _ = cut_off(own, monkeypatch, images=20)
    monkeypatch.setattr(shards, "run", inline)
    made = targets.build(own.store, wanted, spec)
    assert {len(record.files) for record in made} == {1}
    assert all(record.meta["cosine"] >= targets.MIN_COSINE for record in made)


def test_wrong_rows_of_an_earlier_build_are_caught(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wanted, path = cut_off(own, monkeypatch)
    table = pq.read_table(path)
    rolled = table.take(np.roll(np.arange(len(table)), 1))
    logits = table.column_names.index("cnn.logits")
    pq.write_table(table.set_column(logits, "cnn.logits", rolled["cnn.logits"]), path)
    monkeypatch.setattr(shards, "run", inline)
    with pytest.raises(RunFailed, match="differ from a live forward"):
        targets.build(own.store, wanted, spec)
    assert_nothing_was_committed(own, spec, wanted)


def test_rows_of_another_teacher_of_that_name_are_made_anew(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, wanted, path = cut_off(own, monkeypatch)
    table = pq.read_table(path)
    seconds = {"cnn": 1.0, "vit": 1.0}
    note = {"seconds": seconds, "device": "cpu", "targets": {"cnn": "another", "vit": "another"}}
    pq.write_table(staged.with_note(table, note), path)
    monkeypatch.setattr(shards, "run", inline)
    told = list[str]()
    made = targets.build(own.store, wanted, spec, tell=told.append)
    assert told == []
    assert {record.rows for record in made} == {60}


def test_a_driver_that_dies_between_two_records_leaves_the_rest_to_the_next(
    own: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One teacher's targets were committed, the other's not: they are in the same files, and nothing is computed."""
    for item in own.plan.targets.values():
        own.store.remove(item.key)
    monkeypatch.setattr(shards, "run", inline)
    commit, committed = Store.commit, list[str]()

    def dies(self: Store, key: str, *rest: Any, **named: Any) -> Record:
        if committed:
            raise KeyboardInterrupt
        committed.append(key)
        return commit(self, key, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            artifacts.build(own.plan, own.store, Stages())
    computed, told = list[int](), list[str]()
    one_set = TargetsWorker._one_set
    monkeypatch.setattr(TargetsWorker, "_one_set", lambda *args: (computed.append(1), one_set(*args))[1])
    records = artifacts.build(own.plan, own.store, Stages(), told.append)
    assert computed == []
    assert told == ["resumed: 20 of 20 images were there"] * 2
    assert {records[item.key].rows for item in own.plan.targets.values()} == {60}
    assert own.store.verify(deep=True) == []


# ------------------------------------------------------------------------------------------------- reuse


def test_a_second_space_with_a_shared_teacher_builds_nothing(built: Built, tmp_path: Path) -> None:
    base = space_tree(built.generator)
    other = {
        **base,
        "name": "another",
        "teachers": {"big": base["teachers"]["vit"]},  # the same teacher under another name
        "trial": {**base["trial"], "teacher": "big", "student": {"model": "test_resnet"}, "train": {"epochs": 1}},
        "search": {"trials": 1},
    }
    _, _, plan = make(other, tmp_path, built.store)
    assert plan.missing(built.store) == []
    stages = Stages()
    records = artifacts.build(plan, built.store, stages)
    assert stages.opened == []
    for images_key in image_sets(built):
        key = plan.targets["big", images_key].key
        assert key == built.plan.targets["vit", images_key].key
        assert records[key] == built.records[key]


def test_other_views_are_other_targets_and_nothing_else(built: Built, tmp_path: Path) -> None:
    changes = [{"per_image": 4}, {"flip": False}, {"crop_scale": [0.4, 1.0]}, {"crop_ratio": [0.9, 1.1]}]
    seen = {item.key for item in built.plan.targets.values()}
    for change in changes:
        tree = space_tree(built.generator)
        _, _, plan = make({**tree, "views": {**tree["views"], **change}}, tmp_path, built.store)
        assert {item.kind for item in plan.missing(built.store)} == {"targets"}
        keys = {item.key for item in plan.targets.values()}
        assert len(keys) == 4
        assert not keys & seen
        seen |= keys


def test_a_pass_computes_only_what_is_missing(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """One teacher's targets of one image set were lost: the pass has that teacher and that set alone."""
    (synthetic,) = own.plan.synthetic["tiny"]
    lost = own.plan.targets["vit", synthetic.key]
    own.store.remove(lost.key)
    made: list[tuple[tuple[str, ...], list[str]]] = []
    build = targets.build

    def watched(store: Store, items: Any, spec: PassSpec, **rest: Any) -> list[Record]:
        made.append((tuple(ref.name for ref in spec.teachers), list(spec.prefixes)))
        return build(store, items, spec, **rest)

    monkeypatch.setattr(targets, "build", watched)
    monkeypatch.setattr(shards, "run", partial(inline))
    records = artifacts.build(own.plan, own.store, Stages())
    assert made == [(("vit",), [synthetic.key])]
    assert records[lost.key].rows == own.records[lost.key].rows
