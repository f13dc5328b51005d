"""Sources that begin from training images or are filtered: keys, dependencies, what is drawn, counted and charged."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_pipelines
import torch
from small_sweep import SIZE, Built, Stages, make, space_tree
from test_shards import inline
from test_synthesize import images, killed_after, rows_of

from sweeper import contact_sheet, shards, synthesize
from sweeper.adapted import load_teacher
from sweeper.artifacts import build as build_all
from sweeper.filters import agreement
from sweeper.plan import Artifact, Plan, artifact_uses
from sweeper.store import Record, Store
from sweeper.synthesize import GeneratorWorker, TrainingImages, image_seed, job_of
from sweeper.trial import TrialConfig

AGREES = {"kind": "agreement", "teacher": "cnn", "min_probability": 0.11, "max_attempts": 3}


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(shards, "run", inline)


def planned(built: Built, folder: Path, store: Store, trial: Any = None, **source: Any) -> Plan:
    """The plan of the small sweep with another source, whose images and teachers are in the store."""
    tree = space_tree(built.generator, synthetic={"tiny": {"kind": "diffusers", "max_ratio": 2, **source}})
    tree["trial"] = {**tree["trial"], **(trial or {})}
    return make(tree, folder, store)[2]


def begun(sd_folder: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(sd_folder), "prompt": "a {label}", "strength": 0.5, "steps": 4, "batch_size": 20, **more}


def filtered(built: Built, **more: Any) -> dict[str, Any]:
    return {"model": str(built.generator), "steps": 1, "filter": AGREES, **more}


def one_part(plan: Plan) -> Artifact:
    (part,) = plan.synthetic["tiny"]
    return part


def made(plan: Plan, store: Store, **more: Any) -> tuple[Record, pa.Table]:
    config = plan.config.synthetic["tiny"]
    record = synthesize.build(store, one_part(plan), config, teachers=plan.config.teachers, **more)
    return record, store.read_table(record).sort_by([("label", "ascending"), ("index", "ascending")])


def replaced_images(store: Store, key: str, *splits: str) -> None:
    """Commit the images artifact again with noise in place of the images of some splits."""
    record = store.get(key)
    assert record is not None
    table = store.read_table(record)
    rng = np.random.default_rng(1)
    noise = [
        rng.bytes(SIZE * SIZE * 3) if split in splits else image
        for split, image in zip(table["split"].to_pylist(), table["image"].to_pylist(), strict=True)
    ]
    prefix, out = store.staging(), io.BytesIO()
    pq.write_table(table.set_column(table.column_names.index("image"), "image", pa.array(noise, pa.binary())), out)
    store.write_bytes(prefix, "images.parquet", out.getvalue())
    store.remove(key)
    store.commit(key, "images", record.spec, prefix, rows=record.rows, meta=record.meta)


def test_each_image_begins_from_a_training_image_of_its_class(own: Built, sd_folder: Path, tmp_path: Path) -> None:
    plan = planned(own, tmp_path, own.store, **begun(sd_folder))
    record, table = made(plan, own.store)
    real = own.store.read_table(own.records[plan.images.key])
    of = {row["sample_id"]: (row["split"], row["label"]) for row in real.to_pylist()}
    assert [of[row["begun_from"]] for row in table.to_pylist()] == [
        ("train", row["label"]) for row in table.to_pylist()
    ]
    assert len(set(table["begun_from"].to_pylist())) > 10  # of 20: two a class, drawn with replacement
    assert record.dependencies == one_part(plan).dependencies == (plan.images.key,)


def test_validation_and_test_images_change_no_pixel_of_what_is_drawn(
    own: Built, sd_folder: Path, tmp_path: Path
) -> None:
    """All of them replaced by noise: the same images, bit by bit. One split more, and every image is another."""
    plan = planned(own, tmp_path, own.store, **begun(sd_folder))
    found = {}
    for name, splits in {"as they are": (), "noise": ("val", "test"), "train too": ("train", "val", "test")}.items():
        store = Store(str(shutil.copytree(own.store.uri, tmp_path / name)))
        replaced_images(store, plan.images.key, *splits)
        found[name] = images(made(plan, store)[1])
    assert found["noise"] == found["as they are"]
    assert all(found["train too"][name] != image for name, image in found["as they are"].items())


def test_the_real_image_is_chosen_by_the_images_own_seed(own: Built) -> None:
    training = TrainingImages(own.store, own.plan.images.key)
    seeds = [image_seed(0, 3, index) for index in range(200)]
    chosen = [training.pick(3, seed)[0] for seed in seeds]
    assert chosen == [training.pick(3, seed)[0] for seed in seeds]
    shares = [chosen.count(name) / 200 for name in set(chosen)]
    assert len(shares) == 2
    assert min(shares) > 0.35


def test_keys_follow_what_the_images_are_made_of(own: Built, sd_folder: Path, tmp_path: Path) -> None:
    text = begun(sd_folder)
    del text["strength"]
    plain, from_images = (planned(own, tmp_path, own.store, **s) for s in (text, begun(sd_folder)))
    assert set(one_part(plain).spec) == {"generator", "class_names", "seed", "image_size", "base", "start", "stop"}
    assert one_part(plain).dependencies == ()
    assert one_part(from_images).spec["images"] == plain.images.key
    judged = planned(own, tmp_path, own.store, **text, filter=AGREES)
    assert one_part(judged).spec["filter"]["adapt"] == judged.adapt["cnn"].key
    assert one_part(judged).dependencies == (judged.adapt["cnn"].key,)
    other = planned(own, tmp_path, own.store, **text, filter={**AGREES, "teacher": "vit"})
    keys = {one_part(plan).key for plan in (plain, from_images, judged, other)}
    assert len(keys) == 4


def test_a_teacher_that_only_filters_is_adapted_and_charged_to_whoever_uses_the_images(
    own: Built, tmp_path: Path
) -> None:
    trial = {"teacher": {"choice": ["vit", "none"]}}
    plan = planned(own, tmp_path, own.store, trial=trial, **filtered(own))
    assert list(plan.adapt) == ["cnn", "vit"]
    assert {teacher for teacher, _ in plan.targets} == {"vit"}
    records = {item.key: own.store.get(item.key) for item in plan.artifacts()}
    records[one_part(plan).key] = made(plan, own.store)[0]
    for ratio, stages in ((0, []), (1, ["adapt", "synthetic"])):
        config = {"teacher": "none", "student": {"model": "x"}, "synthetic": {"source": "tiny", "ratio": ratio}}
        uses = artifact_uses(plan, TrialConfig.model_validate(config).resolved(), records)  # type: ignore[arg-type]
        assert [use.stage for use in uses.values()] == stages
    taught = TrialConfig.model_validate({**config, "teacher": "vit", "loss": {"kl": {"weight": 1.0}}}).resolved()
    assert [use.artifact.name for use in plan.uses(taught)][:2] == ["vit", "cnn"]


def test_the_first_attempt_that_the_teacher_agrees_with_is_kept(own: Built, tmp_path: Path) -> None:
    """Judged again here, on the stored images; what needed no second attempt is what it is without a filter."""
    plan = planned(own, tmp_path, own.store, **filtered(own))
    record, table = made(plan, own.store)
    spec, config = one_part(plan).spec, plan.config.synthetic["tiny"]
    names, labels = spec["class_names"], table["label"].to_pylist()
    teacher = load_teacher(own.store, spec["filter"]["adapt"], plan.config.teachers["cnn"], names)
    judge = agreement.build(config.filter, torch.device("cpu"), names, teacher)  # type: ignore[attr-defined]
    pixels = np.stack([np.frombuffer(raw, np.uint8).reshape(SIZE, SIZE, 3) for raw in table["image"].to_pylist()])
    scores, accepted = judge.scores(pixels, labels), np.array(table["accepted"].to_pylist())
    np.testing.assert_allclose(table["score"].to_numpy(), scores, rtol=1e-4)
    np.testing.assert_array_equal(accepted, scores >= 0.11)
    rejects = table["rejects"].to_numpy()
    assert 0 < accepted.sum() < len(table)  # the case is a mixed one
    assert rejects.sum() > 0
    assert set(rejects[~accepted]) == {2}
    counts = {"kept": accepted.sum(), "rejected": rejects.sum(), "exhausted": (~accepted).sum()}
    assert record.meta["filter"] == {"kind": "agreement", **counts}
    first = images(own.store.read_table(own.records[one_part(own.plan).key]))
    same = [images(table)[name] == first[name] for name in table["sample_id"].to_pylist()]
    assert all(np.array(same)[rejects == 0])
    assert not any(np.array(same)[accepted & (rejects > 0)])


def test_a_filtered_image_does_not_depend_on_the_sharding(own: Built, tmp_path: Path) -> None:
    plan = planned(own, tmp_path, own.store, **filtered(own, batch_size=4))
    part, expected = one_part(plan), made(plan, own.store)[1]
    rows = rows_of(part)
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    for batches in ([rows.slice(i, 2) for i in range(0, len(rows), 2)], [shuffled.slice(0, 7), shuffled.slice(7)]):
        prefix = own.store.staging()
        job = job_of(part, plan.config.synthetic["tiny"], plan.config.teachers)
        worker = GeneratorWorker(store=own.store, prefix=prefix, job=job)
        for batch in batches:
            worker(batch)
        columns = ["sample_id", "image", "rejects", "accepted", "score"]
        found = shards.written(own.store, prefix, columns)
        assert found.sort_by("sample_id").equals(expected.select(columns).sort_by("sample_id"))


def test_a_filtered_stage_that_was_cut_off_counts_what_was_rejected_before(
    own: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(own, tmp_path, own.store, **filtered(own))
    expected, table = made(plan, own.store)
    store = Store(str(shutil.copytree(own.store.uri, tmp_path / "other")))
    store.remove(one_part(plan).key)
    monkeypatch.setattr(synthesize, "BATCH_ROWS", 3)
    monkeypatch.setattr(synthesize, "FILTERED_BATCHES", 2)
    monkeypatch.setattr(shards, "run", killed_after(2, KeyboardInterrupt()))
    prefix, told = store.staging(), list[str]()
    with pytest.raises(KeyboardInterrupt):
        made(plan, store, prefix=prefix)
    monkeypatch.setattr(shards, "run", inline)
    again, same = made(plan, store, prefix=prefix, tell=told.append)
    assert told == ["resumed: 12 of 20 images were there"]
    assert again.meta["filter"] == expected.meta["filter"]
    assert images(same) == images(table)
    assert again.charge is not None
    assert again.charge.units == 20


def test_a_filter_that_asks_no_teacher_depends_on_none(own: Built, tmp_path: Path) -> None:
    clip = tiny_pipelines.clip(tmp_path / "clip")
    judged = {"kind": "clip_score", "model": str(clip), "min_score": 1.0, "max_attempts": 2, "prompt": "a {label}"}
    plan = planned(own, tmp_path, own.store, **filtered(own, filter=judged))
    record, table = made(plan, own.store)
    assert record.dependencies == ()
    assert record.meta["filter"] == {"kind": "clip_score", "kept": 0, "rejected": 20, "exhausted": 20}
    assert table["score"].to_numpy().max() < 1.0
    assert len(set(table["sample_id"].to_pylist())) == 20


def test_through_the_builder_of_all_artifacts_and_onto_a_sheet(own: Built, sd_folder: Path, tmp_path: Path) -> None:
    """From images and filtered by a score, in one source; what the search needs is there, and can be looked at."""
    plan = planned(own, tmp_path, own.store, **begun(sd_folder, filter=AGREES))
    records = build_all(plan, own.store, Stages())
    part = records[one_part(plan).key]
    assert part.dependencies == (plan.images.key, plan.adapt["cnn"].key)
    assert {"begun_from", "score"} <= set(own.store.read_table(part).column_names)
    contact_sheet.write(tmp_path / "run", plan, own.store, records)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["real.png", "synthetic-tiny.png"]
