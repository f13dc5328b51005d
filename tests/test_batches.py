"""What a trial reads: the right images with the right targets, in an order that survives restarts and more ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save as save_tensors
from samples import (
    CLASS_NAMES,
    SIZE,
    VIEWS,
    colour_split,
    commit_images,
    made_up_targets,
    raw_images,
    sample_ids,
    trial_data,
    write_parquet,
)

from sweeper import data_cache, views
from sweeper.adapted import CLASSIFIER_FILE
from sweeper.batches import DataRefs, ImageSplit, StreamedSplit, TeacherRefs
from sweeper.data_cache import DataCache
from sweeper.errors import RunFailed
from sweeper.feeding import BatchStream
from sweeper.shards import fixed_lists
from sweeper.store import Store
from sweeper.teachers.timm import Config
from sweeper.views import ViewConfig

CPU = torch.device("cpu")


def stream(data: Any, batch_size: int = 5, seed: int = 3, **share: int) -> BatchStream:
    return BatchStream(data, batch_size=batch_size, seed=seed, device=CPU, **share)


def telling_data(num: int = 7, config: ViewConfig = VIEWS) -> Any:
    """Data whose targets say which (sample, view) they are of."""
    data = trial_data(num)
    source = made_up_targets(data.train, data.keys_N, config)
    which = torch.stack(torch.meshgrid(torch.arange(num), torch.arange(config.per_image), indexing="ij"), dim=-1).half()
    columns = {"logits": which, "embedding": which + 100}
    return trial_data(num, source=replace(source, columns=columns), views=config)


def test_a_pass_is_a_permutation_and_no_two_are_alike() -> None:
    index, number = stream(trial_data(7), batch_size=21).indices(0)
    assert number.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    passes = [tuple(index[number == q].tolist()) for q in range(3)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(passes)) == 3
    other, _ = stream(trial_data(7), batch_size=21, seed=4).indices(0)
    assert index.tolist() != other.tolist()


def test_a_position_shows_the_same_wherever_reading_began() -> None:
    whole, _ = stream(trial_data(7), batch_size=40).indices(0)
    seeking = stream(trial_data(7), batch_size=4)
    for start in (32, 5, 19, 0):  # backwards too: the pass that is kept must not stick
        index, number = seeking.indices(start)
        assert index.tolist() == whole[start : start + 4].tolist()
        assert number.tolist() == [p // 7 for p in range(start, start + 4)]


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_ranks_together_are_the_single_rank(num_ranks: int, taught: bool) -> None:
    data = telling_data() if taught else trial_data(7)
    whole = stream(data, batch_size=6).batch(18)
    for rank in range(num_ranks):
        part = stream(data, batch_size=6, rank=rank, num_ranks=num_ranks).batch(18)
        assert len(part.index_B) == 6 // num_ranks
        for name in ("images_BCHW", "labels_B", "index_B"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::num_ranks])
        assert (part.teacher is None) == (whole.teacher is None) == (not taught)
        if part.teacher is not None and whole.teacher is not None:
            for name in ("logits_BK", "embedding_BT"):
                assert torch.equal(getattr(part.teacher, name), getattr(whole.teacher, name)[rank::num_ranks])


def test_the_replayed_view_is_the_one_whose_target_is_read() -> None:
    data = telling_data()
    reader = stream(data)
    seen: dict[int, list[int]] = {}
    batch: Any
    for batch in reader.batches(0, 7 * 6):
        logits_BK, embedding_BT = batch.teacher.logits_BK, batch.teacher.embedding_BT
        assert torch.equal(embedding_BT, logits_BK + 100)
        sample, view = logits_BK.long().unbind(1)
        assert torch.equal(sample, batch.index_B)
        views_BP = torch.from_numpy(data.source.views_NVP[sample, view])
        expected = views.apply_views(data.train.images_BCHW[sample], views_BP, SIZE)
        assert torch.equal(batch.images_BCHW, expected)
        assert torch.equal(batch.labels_B, data.train.labels_B[sample])
        for s, v in zip(sample.tolist(), view.tolist(), strict=True):
            seen.setdefault(s, []).append(v)
    # In V - 1 passes each sample has shown each of its views but the canonical one; here twice.
    assert all(sorted(shown[:3]) == sorted(shown[3:6]) == [1, 2, 3] for shown in seen.values())
    assert len({tuple(shown[:3]) for shown in seen.values()}) > 1, "samples of a pass stand at different views"


def test_a_single_stored_view_is_replayed_as_it_is() -> None:
    data = telling_data(config=ViewConfig(per_image=1))
    batch: Any = stream(data, batch_size=14).batch(0)
    assert batch.teacher.logits_BK[:, 1].tolist() == [0.0] * 14
    torch.testing.assert_close(batch.images_BCHW, data.train.images_BCHW[batch.index_B].float() / 255)


def test_without_a_teacher_each_pass_draws_fresh_views() -> None:
    data = trial_data(7)
    reader = stream(data, batch_size=7)
    shown = []
    for q in range(VIEWS.per_image + 3):  # beyond what a cache would hold
        batch = reader.batch(7 * q)
        assert batch.teacher is None
        keys = data.keys_N[batch.index_B.numpy()]
        views_BP = torch.from_numpy(views.draw_views(VIEWS, 0, keys, np.full(7, q + 1)))
        assert torch.equal(batch.images_BCHW, views.apply_views(data.train.images_BCHW[batch.index_B], views_BP, SIZE))
        shown.append(batch.images_BCHW[batch.index_B.argsort()])
    for i, one in enumerate(shown):
        for other in shown[:i]:
            assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_cover_what_was_asked_for() -> None:
    batches = list(stream(trial_data(7)).batches(10, 25))
    assert len(batches) == 3
    expected = [stream(trial_data(7)).indices(start)[0].tolist() for start in (10, 15, 20)]
    assert [batch.index_B.tolist() for batch in batches] == expected


def commit_synthetic(store: Store, key: str, start: int, stop: int) -> None:
    """Indices [start, stop) of each class, the rows in no order; the pixels say (label, index)."""
    rows = [(label, index) for label in range(len(CLASS_NAMES)) for index in range(start, stop)]
    rows = [rows[i] for i in np.random.default_rng(start).permutation(len(rows))]
    prefix = store.staging()
    columns = {
        "sample_id": [f"synthetic/{label}/{index}" for label, index in rows],
        "label": pa.array([label for label, _ in rows], pa.int32()),
        "index": pa.array([index for _, index in rows], pa.int32()),
        "image": [bytes([10 * label + index]) * (3 * SIZE * SIZE) for label, index in rows],
    }
    write_parquet(store, prefix, columns)
    store.commit(key, "synthetic", {"start": start, "stop": stop}, prefix)


def commit_targets(store: Store, key: str, ids: list[str], *, skip: int = 0, twice: int = 0) -> None:
    """Targets that say the key of their sample and their view, in two files, the rows in no order."""
    rows = [(sample, view) for sample in ids for view in range(VIEWS.per_image)]
    rows = [rows[i] for i in np.random.default_rng(7).permutation(len(rows))][skip:]
    rows += rows[:twice]
    prefix = store.staging()
    for number, part in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        keys = np.array([views.sample_key(sample) for sample, _ in part], dtype=np.uint64)
        view = np.array([view for _, view in part])
        told = np.stack([keys % np.uint64(1000), view], axis=1).astype(np.float16)
        columns = {
            "sample_id": [sample for sample, _ in part],
            "view": pa.array(view, pa.int32()),
            "box": fixed_lists(views.draw_views(VIEWS, 5, keys, view), pa.float32()),
            "t.logits": fixed_lists(told, pa.float16()),
            "t.embedding": fixed_lists(np.tile(told, 2), pa.float16()),
        }
        write_parquet(store, prefix, columns, f"{number}.parquet")
    names = {name: name for name in ("sample_id", "view", "box")}
    store.commit(key, "targets", {}, prefix, columns={**names, "logits": "t.logits", "embedding": "t.embedding"})


def read(store: Store, refs: DataRefs, *, needs: str = "logits embedding", with_test: bool = False) -> Any:
    cache = DataCache(store)
    return cache.trial_data(refs, needs=frozenset(needs.split()), view_config=VIEWS, view_seed=5, with_test=with_test)


def commit_adapted(store: Store, key: str, width: int) -> TeacherRefs:
    """A teacher's classifier as `adapt` stores it; the model behind it is never asked."""
    prefix = store.staging()
    head = {"weight": torch.arange(2.0 * width).reshape(2, width), "bias": torch.tensor([1.0, -1.0])}
    store.write_bytes(prefix, CLASSIFIER_FILE, save_tensors(head))
    store.commit(key, "adapt", {}, prefix, meta={"adapt": "linear_probe"})
    return TeacherRefs(adapt=key, config=Config(model="test_resnet"))


COUNTS = {"train": 5, "val": 4, "test": 3}


def test_trial_data_holds_the_images_of_each_split(store: Store) -> None:
    commit_images(store, COUNTS)
    data = read(store, DataRefs(images="images"), with_test=True)
    table = DataCache(store).table("images")
    for split, part in (("train", data.train), ("val", data.val), ("test", data.test)):
        rows = table.filter(pa.compute.equal(table["split"], split))
        expected = dict(zip(rows["image"].to_pylist(), rows["label"].to_pylist(), strict=True))
        assert len(part) == COUNTS[split]
        assert dict(zip(raw_images(part), part.labels_B.tolist(), strict=True)) == expected
    assert (data.class_names, data.image_size, data.source) == (CLASS_NAMES, SIZE, None)
    assert data.num_real == 5
    assert read(store, DataRefs(images="images")).test is None


def test_synthetic_images_come_in_the_order_of_their_index(store: Store) -> None:
    commit_images(store, COUNTS)
    commit_synthetic(store, "first", 0, 2)
    commit_synthetic(store, "second", 2, 4)
    refs = DataRefs(images="images", synthetic=("first", "second"), num_synthetic=8)
    data = read(store, refs)
    pixels = data.train.images_BCHW[5:, 0, 0, 0].tolist()
    assert pixels == [0, 10, 20, 1, 11, 21, 2, 12], "a class may be one image ahead of another, no more"
    assert data.train.labels_B[5:].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert data.num_real == 5
    keys = [views.sample_key(f"synthetic/{p // 10}/{p % 10}") for p in pixels]
    assert data.keys_N[5:].tolist() == keys


def test_targets_follow_their_samples(store: Store) -> None:
    commit_images(store, COUNTS)
    commit_synthetic(store, "first", 0, 2)
    real = sample_ids(5)
    commit_targets(store, "real-targets", real)
    made = [f"synthetic/{label}/{index}" for label in range(3) for index in range(2)]
    commit_targets(store, "made-targets", made)
    teacher = replace(commit_adapted(store, "adapted", 4), targets=("real-targets", "made-targets"))
    refs = DataRefs(images="images", synthetic=("first",), num_synthetic=4, teachers=(teacher,))
    data = read(store, refs)
    told = data.source.columns["logits"]
    assert told.shape == (9, VIEWS.per_image, 2)
    assert data.source.columns["embedding"].shape == (9, VIEWS.per_image, 4)
    assert (data.source.widths, data.source.classifiers[0][1].tolist()) == ((4,), [1.0, -1.0])
    assert set(read(store, refs, needs="logits labels").source.columns) == {"logits"}
    assert torch.equal(told[..., 1], torch.arange(VIEWS.per_image).expand(9, -1).half())
    expected = torch.tensor((data.keys_N % np.uint64(1000)).astype(np.float32)).half()
    assert torch.equal(told[..., 0], expected[:, None].expand(-1, VIEWS.per_image))
    views_NVP = views.draw_views(VIEWS, 5, data.keys_N, np.tile(np.arange(VIEWS.per_image), (9, 1)))
    assert np.array_equal(data.source.views_NVP, views_NVP)


@pytest.mark.parametrize(("skip", "twice"), [(1, 0), (0, -1), (1, 1)])
def test_targets_with_a_missing_row_are_refused(store: Store, skip: int, twice: int) -> None:
    commit_images(store, COUNTS)
    commit_targets(store, "targets", sample_ids(5 if twice >= 0 else 4), skip=skip, twice=max(0, twice))
    teacher = replace(commit_adapted(store, "adapted", 4), targets=("targets",))
    with pytest.raises(ValueError, match=r"targets hold (19|16) of 20 \(sample, view\) rows"):
        read(store, DataRefs(images="images", teachers=(teacher,)))


def test_what_the_store_lacks_is_named(store: Store) -> None:
    with pytest.raises(RunFailed, match="artifact nowhere is not in"):
        read(store, DataRefs(images="nowhere"))
    commit_images(store, COUNTS)
    with pytest.raises(RunFailed, match=r"artifact gone is not in .*; run again"):
        read(store, DataRefs(images="images", synthetic=("gone",), num_synthetic=1))
    commit_synthetic(store, "first", 0, 2)
    with pytest.raises(RunFailed, match="1 of 7 synthetic images are missing"):
        read(store, DataRefs(images="images", synthetic=("first",), num_synthetic=7))


def test_images_are_laid_out_file_by_file_in_less_memory_than_they_take(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for them those of training are streamed; those that every epoch is judged by have to be there."""
    commit_images(store, {"train": 6, "val": 2, "test": 2})
    refs = DataRefs(images="images")
    monkeypatch.setattr(data_cache, "memory_free", lambda: 0)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    assert len(read(store, refs).train) == 6
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("SWEEPER_CACHE_GB", "1e-6")
    message = rf"2 images of {SIZE} x {SIZE} pixels take .*cache of 1e-06 GB has no room: raise SWEEPER_CACHE_GB"
    with pytest.raises(RunFailed, match=message):
        read(store, refs)
    monkeypatch.setattr(data_cache, "memory_free", lambda: 6 * 3 * SIZE**2)
    assert isinstance(read(store, refs).train, ImageSplit)
    monkeypatch.setattr(data_cache, "memory_free", lambda: 2 * 3 * SIZE**2)
    assert isinstance(read(store, refs).train, StreamedSplit)


def test_the_arrays_that_were_read_last_are_kept(store: Store) -> None:
    cache = DataCache(store, capacity=4)  # two sets of images: what is trained on, what is validated on

    def place(key: str) -> int:
        refs = DataRefs(images=key)
        data = cache.trial_data(refs, needs=frozenset(), view_config=VIEWS, view_seed=5, with_test=False)
        assert len(data.train) == COUNTS["train"]
        return data.train.images_BCHW.data_ptr()

    for key in ("a", "b", "c"):
        commit_images(store, COUNTS, key)
    first, second = place("a"), place("b")
    assert (place("a"), place("b")) == (first, second)
    place("a")
    place("c")  # in place of b, which was not read as lately
    assert place("a") == first
    assert len(cache._held) == 4


def test_an_artifact_that_was_made_anew_is_read_anew(store: Store) -> None:
    """A stage may be rebuilt under its key, with other bytes: a node must not go on with the old ones."""
    commit_images(store, COUNTS)
    old = read(store, DataRefs(images="images"))
    store.remove("images")
    commit_images(store, {"train": 6, "val": 4, "test": 3})
    new = read(store, DataRefs(images="images"))
    assert (len(old.train), len(new.train)) == (5, 6)


def test_the_canonical_view_is_the_image_itself() -> None:
    split = colour_split(4)
    torch.testing.assert_close(views.whole(split.images_BCHW, SIZE), split.images_BCHW.float() / 255)
