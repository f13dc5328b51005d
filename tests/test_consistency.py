"""What is cached is what the teacher says live: the embedded teachers on digits, by the real pass and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from samples import write_parquet
from small_sweep import make
from test_shards import inline
from torch.nn.functional import cosine_similarity

from sweeper import adapt, adapted, shards, targets, views
from sweeper.batches import image_split
from sweeper.data_cache import DataCache
from sweeper.datasets import digits
from sweeper.feeding import BatchStream
from sweeper.pixels import fit_square
from sweeper.plan import Plan
from sweeper.store import Store
from sweeper.sweep import data_refs
from sweeper.targets import MIN_COSINE, PassSpec, TeacherRef
from sweeper.trial import TrialConfig

CPU = torch.device("cpu")
SIZE = 32
PLAIN: dict[str, Any] = {"per_image": 5, "flip": True}
JITTERED: dict[str, Any] = {**PLAIN, "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
TREE: dict[str, Any] = {
    "name": "consistent",
    "dataset": {"kind": "digits", "train_per_class": 2, "image_size": SIZE},
    "views": PLAIN,
    "teachers": {name: {"kind": "timm", "weights": f"zoo:{name}", "adapt": "linear_probe"} for name in ("cnn", "vit")},
    "trial": {
        "teacher": {"choice": ["cnn", "vit"]},
        "student": {"model": "test_resnet"},
        "loss": {"ce": 1, "kl": {"weight": 1}, "embedding": {"kind": "align", "weight": 1}},
    },
    "search": {"trials": 1},
}


@dataclass(frozen=True)
class Cached:
    """Plans by name that share one store, which holds the targets of all; and where its images stand in their set."""

    store: Store
    plans: Mapping[str, Plan]
    pixels: torch.Tensor
    position: Mapping[str, int]

    def table(self, plan: str, teacher: str) -> pa.Table:
        item = self.plans[plan].targets[teacher, self.plans[plan].images.key]
        record = self.store.get(item.key)
        assert record is not None
        return self.store.read_table(record)

    def cosines(self, plan: str, teacher: str, views_RP: np.ndarray) -> dict[str, torch.Tensor]:
        """Of each row of the cache with the teacher's live output for that image under the given view, by column."""
        table, made = self.table(plan, teacher), self.plans[plan]
        model: Any = adapted.load_teacher(
            self.store, made.adapt[teacher].key, made.config.teachers[teacher], made.index.class_names
        )
        owner = [self.position[sample_id] for sample_id in table["sample_id"].to_pylist()]
        with torch.no_grad():
            out = model(
                views.apply_views(self.pixels[owner], torch.from_numpy(views_RP), model.input_size, model.interpolation)
            )
        live = {"logits": out.logits_BK, "embedding": out.embedding_BD}
        return {
            column: cosine_similarity(torch.from_numpy(dense(table, column)).float(), expected)
            for column, expected in live.items()
        }


def dense(table: pa.Table, column: str) -> np.ndarray:
    return np.stack(table[column].to_numpy(zero_copy_only=False))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """Both teachers probed once; their targets with plain and with jittered views. In this process, without Ray."""
    folder = tmp_path_factory.mktemp("consistent")
    store = Store(str(folder / "store"))
    laws = {"plain": PLAIN, "jittered": JITTERED}
    plans = {name: make({**TREE, "views": law}, folder, store)[2] for name, law in laws.items()}
    plan = plans["plain"]
    dataset: Any = plan.config.dataset
    pictures = digits.decode(dataset, plan.index.sources)
    rows = {
        "sample_id": list(plan.index.sample_ids),
        "label": pa.array(plan.index.labels, pa.int32()),
        "split": list(plan.index.splits),
        "image": [fit_square(picture, SIZE) for picture in pictures],  # type: ignore[arg-type]
    }
    prefix = store.staging()
    write_parquet(store, prefix, rows)
    meta = {"image_size": SIZE, "class_names": list(plan.index.class_names)}
    images = store.commit(plan.images.key, "images", plan.images.spec, prefix, meta=meta, rows=len(plan.index))
    for name, item in plan.adapt.items():
        adapt.build(store, item, plan.config.teachers[name], plan.index.class_names, plan.config.views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "run", inline)
        patch.setattr(shards, "pool_size", lambda *_, **__: 1)
        for made in plans.values():
            spec = PassSpec(
                teachers=tuple(
                    TeacherRef(name, config, made.adapt[name].key) for name, config in made.config.teachers.items()
                ),
                views=made.config.views,
                seed=made.config.seed,
                class_names=made.index.class_names,
                prefixes={made.images.key: store.staging()},
            )
            targets.build(store, made.targets, spec)
    table = store.read_table(images)
    position = {sample_id: row for row, sample_id in enumerate(table["sample_id"].to_pylist())}
    return Cached(store, plans, image_split(table, SIZE).images_BCHW, position)


both_teachers = pytest.mark.parametrize("teacher", ["cnn", "vit"])
both_laws = pytest.mark.parametrize("law", ["plain", "jittered"])


@both_teachers
@both_laws
def test_every_cached_target_is_what_the_teacher_says_live(cached: Cached, law: str, teacher: str) -> None:
    table = cached.table(law, teacher)
    boxes = dense(table, "box")
    assert boxes.shape == (20 * PLAIN["per_image"], 5 if law == "plain" else 9)
    assert table["logits"].type.value_type == pa.float16()
    for column, cosines in cached.cosines(law, teacher, boxes).items():
        assert cosines.min() >= MIN_COSINE == 0.999, column


@both_teachers
@both_laws
def test_a_wrong_flip_is_caught(cached: Cached, law: str, teacher: str) -> None:
    """The bit alone is turned, on the views that are mirrored; the same views with their own bit are those above."""
    boxes = dense(cached.table(law, teacher), "box")
    mirrored = boxes[:, 4] == 1
    assert 20 < mirrored.sum() < 60
    boxes[:, 4] = 0
    for column, cosines in cached.cosines(law, teacher, boxes).items():
        assert cosines[mirrored].max() < MIN_COSINE, f"{column}: each of them alone would be caught"
        assert cosines[mirrored].mean() < 0.7, column  # 0.19 to 0.60; 0.87 in METHOD's field report on photographs
        assert cosines[~mirrored].min() >= MIN_COSINE


@both_teachers
def test_views_without_their_jitter_are_caught(cached: Cached, teacher: str) -> None:
    boxes = dense(cached.table("jittered", teacher), "box")
    jittered = (boxes[:, 5:] != (1, 1, 1, 0)).any(axis=1)
    assert jittered.sum() == 20 * (PLAIN["per_image"] - 1), "all but the canonical ones"
    for column, cosines in cached.cosines("jittered", teacher, boxes[:, :5].copy()).items():
        assert (cosines[jittered] < MIN_COSINE).float().mean() > 0.9, column
        assert cosines[jittered].mean() < 0.95, column
        assert cosines[~jittered].min() >= MIN_COSINE


@both_laws
@pytest.mark.parametrize("match", ["same", "fixed"])
def test_a_trial_hears_the_same_from_the_cache_and_from_the_teacher_itself(
    cached: Cached, law: str, match: str
) -> None:
    plan = cached.plans[law]
    trial = TrialConfig.model_validate({**TREE["trial"], "teacher": "cnn"}).resolved()
    refs = data_refs(plan, trial)
    online = replace(refs, teachers=tuple(replace(teacher, targets=()) for teacher in refs.teachers))
    config = plan.config.views.model_copy(update={"match": match})
    batches, canonical_NK = [], torch.empty(0)
    for asked in (refs, online):
        data = DataCache(cached.store).trial_data(
            asked, needs=trial.needs, view_config=config, view_seed=plan.config.seed, with_test=False
        )
        assert data.source is not None
        if (column := data.source.canonical("logits")) is not None:
            canonical_NK = column
        batches.append(BatchStream(data, batch_size=80, seed=1, device=CPU).batch(0))
    stored, told = batches
    assert torch.equal(stored.images_BCHW, told.images_BCHW)
    assert stored.teacher is not None
    assert told.teacher is not None
    for name in ("logits_BK", "embedding_BT"):
        assert cosine_similarity(getattr(stored.teacher, name), getattr(told.teacher, name)).min() >= MIN_COSINE
    with_view_0_B = cosine_similarity(told.teacher.logits_BK, canonical_NK[told.index_B])
    assert (with_view_0_B.min() >= MIN_COSINE) == (match == "fixed")
