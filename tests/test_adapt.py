"""Teachers: the stored teacher is the adapted one, and the test split is never read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import CLASS_NAMES, SIZE, VIEWS, colour_split, commit_images, raw_images
from tiny_models import saved_clip

from sweeper import adapt, views
from sweeper.adapted import load_teacher
from sweeper.batches import image_split
from sweeper.data_cache import DataCache
from sweeper.errors import RunFailed
from sweeper.plan import Artifact, artifact
from sweeper.registry import Settings
from sweeper.store import Record, Store
from sweeper.teachers import open_clip, timm

COUNTS = {"train": 18, "val": 9, "test": 9}


def teacher_config(way: str, **fields: Any) -> timm.Config:
    return timm.Config(**{"model": "test_resnet", "weights": "none", "adapt": way, "input_size": 32, **fields})


def adapted(store: Store, config: Settings, seed: int = 0) -> tuple[Artifact, Record]:
    images = store.get("images") or commit_images(store, COUNTS)
    spec: Mapping[str, Any] = {"teacher": config.model_dump(mode="json"), "images": images.key, "seed": seed}
    item = artifact("adapt", spec, "t", COUNTS["train"], [images.key])
    return item, adapt.build(store, item, config, CLASS_NAMES, VIEWS)


def short(way: str) -> dict[str, int]:
    return {"fine_tune_steps": 2} if way == "fine_tune" else {}


def val_split(store: Store) -> Any:
    table = DataCache(store).table("images")
    return image_split(table.filter(np.array(table["split"].to_pylist()) == "val"), SIZE)


@pytest.mark.parametrize("way", ["linear_probe", "fine_tune", "none"])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_stored_teacher_is_the_one_that_was_adapted(
    store: Store, way: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "FINE_TUNE_BATCH", 8)
    config = teacher_config(way, model=model, **short(way))
    kept: list[Any] = []
    build = timm.build

    def watched(*args: Any) -> Any:
        kept.append(build(*args))
        return kept[-1]

    monkeypatch.setattr(timm, "build", watched)
    item, record = adapted(store, config)
    loaded = load_teacher(store, item.key, config, CLASS_NAMES)
    original, untouched = kept[0], build(config, CLASS_NAMES)
    assert not loaded.training
    assert not any(p.requires_grad for p in (*loaded.parameters(), *original.parameters()))
    val = val_split(store)
    features, logits = adapt.embed(loaded, val, torch.device("cpu"))
    expected = adapt.embed(original, val, torch.device("cpu"))
    assert torch.equal(features, expected[0])
    assert expected[1] is not None
    assert torch.equal(logits, expected[1])
    assert torch.equal(features, adapt.embed(untouched, val, torch.device("cpu"))[0]) == (way != "fine_tune")
    accuracy = float((logits.argmax(dim=1) == val.labels_B).float().mean())
    assert record.meta == {"accuracy_val": pytest.approx(accuracy), "adapt": way}
    assert record.dependencies == ("images",)
    assert record.charge is not None
    assert (record.charge.stage, record.charge.key, record.charge.device) == ("adapt", item.key, "cpu")
    assert (record.charge.seconds > 0.001) == (way != "none")


@pytest.mark.parametrize("way", ["none", "linear_probe", "fine_tune"])
def test_a_clip_is_stored_with_its_classifier(
    store: Store, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zero-shot one needs no label, and its texts are read once: what is stored brings the classifier."""
    saved_clip(tmp_path / "clip")
    config = open_clip.Config(weights=str(tmp_path / "clip"), adapt=way, **short(way))
    fresh = open_clip.build(config, CLASS_NAMES)
    seen: list[int] = []
    embed = adapt.embed
    monkeypatch.setattr(adapt, "embed", lambda t, split, device: seen.append(len(split)) or embed(t, split, device))
    item, record = adapted(store, config)
    assert record.charge is not None
    assert record.charge.seconds > 0
    if way == "none":
        assert seen == [COUNTS["val"]], "no training image is looked at"
    monkeypatch.delattr("open_clip.get_tokenizer")
    loaded = load_teacher(store, item.key, config, CLASS_NAMES)
    val = val_split(store)
    features, logits = embed(loaded, val, torch.device("cpu"))
    assert logits is not None
    assert record.meta["accuracy_val"] == pytest.approx(float((logits.argmax(1) == val.labels_B).float().mean()))
    expected, zero_shot = embed(fresh, val, torch.device("cpu"))
    assert torch.equal(features, expected) == (way != "fine_tune")
    if way == "none":
        assert zero_shot is not None
        assert torch.equal(logits, zero_shot)


def test_a_probe_of_random_features_already_knows_colours(store: Store) -> None:
    _, record = adapted(store, teacher_config("linear_probe"))
    assert record.meta["accuracy_val"] > 0.8


def test_the_test_split_is_never_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is the same, and no image of that split reaches the teacher."""
    config, seen = teacher_config("linear_probe"), []
    embed = adapt.embed

    def watched(teacher: Any, split: Any, device: torch.device) -> Any:
        seen.extend(raw_images(split))
        return embed(teacher, split, device)

    monkeypatch.setattr(adapt, "embed", watched)
    adapted(store, config)
    table = DataCache(store).table("images")
    by_split: dict[str, set[bytes]] = {}
    for split, image in zip(table["split"].to_pylist(), table["image"].to_pylist(), strict=True):
        by_split.setdefault(split, set()).add(image)
    assert set(seen) == by_split["train"] | by_split["val"]
    assert not set(seen) & by_split["test"]


def test_fine_tuning_lowers_the_loss_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "FINE_TUNE_BATCH", 18)
    split = colour_split(18)
    keys_N = np.array([views.sample_key(str(i)) for i in range(18)], dtype=np.uint64)

    def tuned(seed: int, steps: int = 12) -> tuple[float, dict[str, torch.Tensor]]:
        teacher = timm.build(teacher_config("fine_tune"), CLASS_NAMES)
        teacher.with_classifier(torch.zeros(3, teacher.embedding_dim), torch.zeros(3))
        adapt.fine_tune(teacher, split, keys_N, VIEWS, steps, seed)
        assert not teacher.training
        _, logits = adapt.embed(teacher.train(), split, torch.device("cpu"))
        loss = torch.nn.functional.cross_entropy(logits, split.labels_B)
        return loss.item(), {n: v.clone() for n, v in teacher.state_dict().items()}

    assert tuned(0)[0] < 0.8 * tuned(0, steps=0)[0]
    one, again, other = tuned(0, 2)[1], tuned(0, 2)[1], tuned(1, 2)[1]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_what_is_missing_is_named(store: Store) -> None:
    config = teacher_config("none")
    item = artifact("adapt", {"images": "images", "seed": 0}, "t", 1)
    with pytest.raises(RunFailed, match=r"images images are not in .*; run again"):
        adapt.build(store, item, config, CLASS_NAMES, VIEWS)
    with pytest.raises(RunFailed, match=r"adapted teacher nowhere is not in .*; run again"):
        load_teacher(store, "nowhere", config, CLASS_NAMES)


def test_a_teacher_without_finite_outputs_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = adapt.embed

    def broken(*args: Any) -> Any:
        features, logits = embed(*args)
        return features, torch.full_like(logits, float("nan"))

    monkeypatch.setattr(adapt, "embed", broken)
    with pytest.raises(RunFailed, match="teacher 't': its outputs on the validation images are not finite"):
        adapted(store, teacher_config("none"))
    assert list(store.find("adapt")) == []


def test_each_batch_of_embeddings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = timm.build(teacher_config("none"), CLASS_NAMES)
    split = colour_split(7)
    whole = adapt.embed(teacher, split, torch.device("cpu"))
    monkeypatch.setattr(adapt, "BATCH", 3)
    parts = adapt.embed(teacher, split, torch.device("cpu"))
    torch.testing.assert_close(parts, whole)
    assert len(whole[0]) == 7
    assert adapt.embed(teacher.without_classifier(), split, torch.device("cpu"))[1] is None
