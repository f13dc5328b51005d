"""The targets stage: what the sweep needs of every teacher for every image and view, in one pass that decodes once.

Rows are keyed by (sample_id, view) and hold the view's box, so that the student replays the very view whose target it
reads (Beyer et al. 2022: a consistent teacher; a wrong flip alone costs a feature a cosine of 0.87). All teachers of a
pass sit in the same worker and write the columns of one file; each teacher's artifact names its own columns of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sweeper import adapted, shards, views
from sweeper.batches import image_split
from sweeper.errors import RunFailed
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary, fixed_lists
from sweeper.sources import view_targets
from sweeper.store import Record, Store
from sweeper.views import ViewConfig

BATCH_IMAGES = 128
FORWARD_BATCH = 256
CHECKED_ROWS = 64
MIN_COSINE = 0.999


@dataclass(frozen=True)
class TeacherRef:
    """A teacher of a pass: its name in the file, its settings and its adapted weights."""

    name: str
    config: Settings
    adapt_key: str
    columns: tuple[str, ...] = ("logits", "embedding")  # of `losses.COLUMNS`


@dataclass(frozen=True)
class PassSpec:
    """What a worker of the pass needs besides its rows: which teachers, which views, and where rows go."""

    teachers: tuple[TeacherRef, ...]
    views: ViewConfig
    seed: int
    class_names: tuple[str, ...]
    prefixes: Mapping[str, str]  # image-set key -> staged prefix
    checked_share: float = 1.0  # rows of each batch that are compared with a live forward; `build` sets it


class TargetsWorker:
    """Holds all teachers of a pass; writes the rows of a batch of images of one image set."""

    def __init__(self, *, store: Store, spec: PassSpec) -> None:
        self.store, self.spec = store, spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.teachers: dict[str, Any] = {
            ref.name: adapted.load_teacher(store, ref.adapt_key, ref.config, spec.class_names) for ref in spec.teachers
        }
        for teacher in self.teachers.values():
            teacher.to(self.device)
        self._images: tuple[str, pa.Table, int] = ("", pa.table({}), 0)

    def _rows_of(self, key: str) -> tuple[pa.Table, int]:
        if self._images[0] != key:
            record = self.store.get(key)
            if record is None:
                raise RunFailed(f"images {key[:12]} are not in {self.store.uri}")
            self._images = (key, self.store.read_table(record), int(record.meta["image_size"]))
        return self._images[1], self._images[2]

    def __call__(self, rows: pa.Table) -> Summary:
        summary: Summary = {"rows": 0, "device": device_name(self.device), "cosine": 1.0}
        for key in rows["images"].unique().to_pylist():
            wanted = rows.filter(np.array(rows["images"].to_pylist()) == key)
            table, size = self._rows_of(key)
            self._one_set(key, table.take(wanted["row"]), size, summary)
        return summary

    def _one_set(self, key: str, table: pa.Table, size: int, summary: Summary) -> None:
        ids = table["sample_id"].to_pylist()
        num_views = self.spec.views.per_image
        keys_N = np.array([views.sample_key(s) for s in ids], dtype=np.uint64)
        view_V = np.arange(num_views)
        boxes_R5 = views.draw_views(
            self.spec.views, self.spec.seed, np.repeat(keys_N, num_views), np.tile(view_V, len(ids))
        )
        columns: dict[str, Any] = {
            "sample_id": np.repeat(np.array(ids, dtype=object), num_views),
            "view": pa.array(np.tile(view_V, len(ids)), pa.int32()),
            "box": fixed_lists(boxes_R5, pa.float32()),
        }
        images_BCHW = image_split(table, size).images_BCHW
        owner_R = torch.arange(len(ids)).repeat_interleave(num_views)
        for ref in self.spec.teachers:
            name, teacher = ref.name, self.teachers[ref.name]
            parts = []
            with DeviceTimer(self.device) as timer:
                for start in range(0, len(owner_R), FORWARD_BATCH):
                    part = slice(start, start + FORWARD_BATCH)
                    images, boxes = images_BCHW[owner_R[part]], boxes_R5[part]
                    parts.append(view_targets(teacher, ref.columns, images, boxes, self.device))
            for column in ref.columns:
                joined = np.concatenate([values[column] for values in parts])
                if not np.isfinite(joined).all():
                    raise RunFailed(f"teacher {name!r}: {column} are not finite in fp16 on image set {key[:12]}")
                columns[f"{name}.{column}"] = fixed_lists(joined, pa.float16())
            summary[f"{key}/{name}"] = summary.get(f"{key}/{name}", 0.0) + timer.seconds
        shards.write_rows(self.store, self.spec.prefixes[key], pa.table(columns), ids)
        summary["cosine"] = min(summary["cosine"], self._live_cosine(key, ids, images_BCHW))
        summary["rows"] += len(ids) * num_views

    def _live_cosine(self, key: str, ids: Sequence[str], images_BCHW: torch.Tensor) -> float:
        """The least cosine between rows of the file as it lies in the store and a live forward of the same views.

        Rows are drawn at random, enough for `CHECKED_ROWS` in the whole pass; boxes are drawn anew, not read.
        """
        stored = shards.read_rows(self.store, self.spec.prefixes[key], ids)
        rng = np.random.Generator(np.random.Philox(key=[self.spec.seed, views.sample_key(ids[0])]))
        chosen = np.sort(rng.permutation(len(stored))[: max(1, math.ceil(self.spec.checked_share * len(stored)))])
        rows = stored.take(chosen)
        position = {sample_id: i for i, sample_id in enumerate(ids)}
        owners = [position[s] for s in rows["sample_id"].to_pylist()]
        keys_B = np.array([views.sample_key(ids[i]) for i in owners], dtype=np.uint64)
        boxes_B5 = views.draw_views(self.spec.views, self.spec.seed, keys_B, rows["view"].to_numpy())
        least = 1.0
        for ref in self.spec.teachers:
            live = view_targets(self.teachers[ref.name], ref.columns, images_BCHW[owners], boxes_B5, self.device)
            for column, values in live.items():
                cached = np.stack(rows[f"{ref.name}.{column}"].to_numpy(zero_copy_only=False)).astype(np.float64)
                least = min(least, float(_cosines(cached, values.astype(np.float64)).min()))
        return least


def verify(store: Store, prefix: str, ids: Sequence[str], spec: PassSpec) -> None:
    """Check row count and unique keys of what a pass wrote for one image set.

    Raises:
        RunFailed: rows are missing, or there twice.
    """
    table = shards.written(store, prefix, ["sample_id", "view"])
    keys = set(zip(table["sample_id"].to_pylist(), table["view"].to_pylist(), strict=True))
    expected = len(ids) * spec.views.per_image
    if len(table) != expected or len(keys) != expected:
        raise RunFailed(
            f"targets: {len(keys)} of {expected} (sample, view) rows were written, {len(table)} rows in all"
        )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosines: np.ndarray = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return cosines


def build(
    store: Store,
    artifacts: Mapping[tuple[str, str], Artifact],
    spec: PassSpec,
    *,
    gpus: float = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """One pass over all image sets of `spec.prefixes` for all of its teachers; verified, then one record each.

    Args:
        artifacts: what is to be committed, by (teacher, image-set key): all pairs of the pass.

    Raises:
        RunFailed: rows are missing or there twice, or differ from what the teachers say live; nothing stays staged.
    """
    try:
        done, ids = _checked_pass(store, spec, gpus, progress)
        return [_commit(store, spec, item, pair, done, ids[pair[1]]) for pair, item in artifacts.items()]
    except BaseException:
        for prefix in spec.prefixes.values():
            store.discard(prefix)
        raise


def _checked_pass(
    store: Store, spec: PassSpec, gpus: float, progress: Progress | None
) -> tuple[list[Summary], dict[str, list[str]]]:
    """Run the pass and check what it wrote; returns the workers' summaries and the ids of each image set."""
    ids: dict[str, list[str]] = {}
    rows = []
    for key in spec.prefixes:
        record = store.get(key)
        if record is None:
            raise RunFailed(f"images {key[:12]} are not in {store.uri}; run again to build them")
        columns = ["sample_id", "split"] if record.kind == "images" else ["sample_id"]
        table = store.read_table(record, columns)
        wanted = np.arange(len(table))
        if record.kind == "images":
            wanted = wanted[np.array(table["split"].to_pylist()) == "train"]
        ids[key] = table["sample_id"].take(wanted).to_pylist()
        rows.append(pa.table({"images": [key] * len(wanted), "row": wanted}))
    whole = pa.concat_tables(rows)
    spec = replace(spec, checked_share=min(1.0, CHECKED_ROWS / (len(whole) * spec.views.per_image)))
    shape = Shape(BATCH_IMAGES, gpus=gpus, pool=shards.pool_size(len(whole), BATCH_IMAGES, gpus=gpus > 0))
    done = shards.run(whole, partial(TargetsWorker, store=store, spec=spec), shape, progress)
    for key, prefix in spec.prefixes.items():
        verify(store, prefix, ids[key], spec)
    cosine = min(s["cosine"] for s in done)
    if not cosine >= MIN_COSINE:
        raise RunFailed(f"targets: cached rows differ from a live forward (cosine {cosine:.4f}, allowed: {MIN_COSINE})")
    return done, ids


def _commit(
    store: Store, spec: PassSpec, item: Artifact, pair: tuple[str, str], done: Sequence[Summary], ids: Sequence[str]
) -> Record:
    """One teacher's targets of one image set: its columns of the files that the pass shares."""
    teacher, key = pair
    seconds = sum(s.get(f"{key}/{teacher}") or 0.0 for s in done)
    names = {name: name for name in ("sample_id", "view", "box")}
    names |= {column: f"{teacher}.{column}" for column in item.spec["columns"]}
    return store.commit(
        item.key,
        "targets",
        dict(item.spec),
        spec.prefixes[key],
        columns=names,
        rows=len(ids) * spec.views.per_image,
        meta={"cosine": min(s["cosine"] for s in done)},
        charge=Charge(stage="targets", key=item.key, seconds=seconds, device=done[0]["device"], units=item.units),
        dependencies=item.dependencies,
    )
