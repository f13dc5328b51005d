"""The targets stage: what the sweep needs of every teacher for every image and view, in one pass that decodes once.

Rows are keyed by (sample_id, view) and hold the view's parameters (`box`), so that the student replays the very view
whose target it reads (Beyer et al. 2022: a consistent teacher; a wrong flip alone costs a feature a cosine of 0.87).
All teachers of a pass sit in the same worker and write the columns of one file; each teacher's artifact names its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sweeper import adapted, cpu, shards, views
from sweeper.batches import image_split
from sweeper.errors import RunFailed
from sweeper.lease import Tell, untold
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary, fixed_lists
from sweeper.sources import view_targets
from sweeper.staged import Note, Spoilt, Staged, devices, read_whole
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
    """What a worker of the pass needs besides its rows: which teachers, which views, and where rows go.

    `build` sets the last two, and a prefix of its own below each that it was given.
    """

    teachers: tuple[TeacherRef, ...]
    views: ViewConfig
    seed: int
    class_names: tuple[str, ...]
    prefixes: Mapping[str, str]  # image-set key -> staged prefix
    targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # image-set key -> teacher -> artifact key
    checked_share: float = 1.0  # rows of each batch that are compared with a live forward


class TargetsWorker:
    """Holds all teachers of a pass; writes the rows of a batch of images of one image set.

    A batch has the columns images (key of the image set), row (in that set) and file: empty, or the file of an earlier
    build whose targets of this image are compared with a live forward, and not written again.
    """

    def __init__(self, *, store: Store, spec: PassSpec) -> None:
        self.store, self.spec = store, spec
        self.device = cpu.device_of_stage()
        self.teachers: dict[str, Any] = {
            ref.name: adapted.load_teacher(store, ref.adapt_key, ref.config, spec.class_names) for ref in spec.teachers
        }
        for teacher in self.teachers.values():
            teacher.to(self.device)
        self._images: tuple[str, pa.Table, int] = ("", pa.table({}), 0)

    def _rows_of(self, key: str) -> tuple[pa.Table, int]:
        if self._images[0] != key:
            record = _images(self.store, key)
            self._images = (key, self.store.read_table(record), int(record.meta["image_size"]))
        return self._images[1], self._images[2]

    def __call__(self, rows: pa.Table) -> Summary:
        summary: Summary = {"rows": 0, "bytes": 0, "cosine": 1.0}
        groups = list(zip(rows["images"].to_pylist(), rows["file"].to_pylist(), strict=True))
        for key, file in dict.fromkeys(groups):
            wanted = rows.filter(np.array([group == (key, file) for group in groups]))
            table, size = self._rows_of(key)
            images = table.take(wanted["row"])
            ids, images_BCHW = images["sample_id"].to_pylist(), image_split(images, size).images_BCHW
            if file:
                stored = read_whole(self.store, file)
                if stored is None:
                    raise RunFailed(f"store: {self.store.uri}/{file} was damaged since this run began; run again")
            else:
                stored, written = self._one_set(key, ids, images_BCHW)
                summary["rows"] += len(stored)
                summary["bytes"] += written
            summary["cosine"] = min(summary["cosine"], self._live_cosine(stored, ids, images_BCHW, whole=bool(file)))
        return summary

    def _one_set(self, key: str, ids: Sequence[str], images_BCHW: torch.Tensor) -> tuple[pa.Table, int]:
        """Compute and write the rows of these images; returns them as they then lie in the store, and their bytes."""
        num_views = self.spec.views.per_image
        keys_N = np.array([views.sample_key(s) for s in ids], dtype=np.uint64)
        view_V = np.arange(num_views)
        views_RP = views.draw_views(
            self.spec.views, self.spec.seed, np.repeat(keys_N, num_views), np.tile(view_V, len(ids))
        )
        columns: dict[str, Any] = {
            "sample_id": np.repeat(np.array(ids, dtype=object), num_views),
            "view": pa.array(np.tile(view_V, len(ids)), pa.int32()),
            "box": fixed_lists(views_RP, pa.float32()),
        }
        seconds: dict[str, float] = {}
        owner_R = torch.arange(len(ids)).repeat_interleave(num_views)
        for ref in self.spec.teachers:
            name, teacher = ref.name, self.teachers[ref.name]
            parts = []
            with DeviceTimer(self.device) as timer:
                for start in range(0, len(owner_R), FORWARD_BATCH):
                    part = slice(start, start + FORWARD_BATCH)
                    images, views_BP = images_BCHW[owner_R[part]], views_RP[part]
                    parts.append(view_targets(teacher, ref.columns, images, views_BP, self.device))
            for column in ref.columns:
                joined = np.concatenate([values[column] for values in parts])
                if not np.isfinite(joined).all():
                    raise Spoilt(f"teacher {name!r}: {column} are not finite in fp16 on image set {key[:12]}")
                columns[f"{name}.{column}"] = fixed_lists(joined, pa.float16())
            seconds[name] = timer.seconds
        note = {"seconds": seconds, "device": device_name(self.device), "targets": dict(self.spec.targets.get(key, {}))}
        size = shards.write_rows(self.store, self.spec.prefixes[key], pa.table(columns), ids, note)
        return shards.read_rows(self.store, self.spec.prefixes[key], ids), size

    def _live_cosine(self, stored: pa.Table, ids: Sequence[str], images_BCHW: torch.Tensor, *, whole: bool) -> float:
        """The least cosine between rows of a file as it lies in the store and a live forward of the same views.

        Rows are drawn at random, enough for `CHECKED_ROWS` in the whole pass, or are all of these images; views are
        drawn anew, not read.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.spec.seed, views.sample_key(ids[0])]))
        position = {sample_id: i for i, sample_id in enumerate(ids)}
        if whole:
            rows = stored.filter(np.array([sample_id in position for sample_id in stored["sample_id"].to_pylist()]))
        else:
            count = max(1, math.ceil(self.spec.checked_share * len(stored)))
            rows = stored.take(np.sort(rng.permutation(len(stored))[:count]))
        owners = [position[s] for s in rows["sample_id"].to_pylist()]
        keys_B = np.array([views.sample_key(ids[i]) for i in owners], dtype=np.uint64)
        views_BP = views.draw_views(self.spec.views, self.spec.seed, keys_B, rows["view"].to_numpy())
        least = 1.0
        for ref in self.spec.teachers:
            live = view_targets(self.teachers[ref.name], ref.columns, images_BCHW[owners], views_BP, self.device)
            for column, values in live.items():
                cached = np.stack(rows[f"{ref.name}.{column}"].to_numpy(zero_copy_only=False)).astype(np.float64)
                least = min(least, float(_cosines(cached, values.astype(np.float64)).min()))
        return least


def verify(files: Staged, ids: Sequence[str], spec: PassSpec) -> list[Note]:
    """Check row count and unique keys of what there is for one image set; returns what each file cost.

    Raises:
        Spoilt: rows are missing, or there twice.
    """
    table, notes = files.read(["sample_id", "view"])
    keys = set(zip(table["sample_id"].to_pylist(), table["view"].to_pylist(), strict=True))
    wanted = {(sample_id, view) for sample_id in ids for view in range(spec.views.per_image)}
    if len(table) != len(wanted) or keys != wanted:
        raise Spoilt(
            f"targets: {len(keys)} of {len(wanted)} (sample, view) rows were written, {len(table)} rows in all"
        )
    return notes


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
    tell: Tell = untold,
) -> list[Record]:
    """One pass over all image sets of `spec.prefixes` for all of its teachers; verified, then one record each.

    Rows that an earlier build left below the prefixes are not computed again; some of them are checked as new ones are.

    Args:
        artifacts: what is to be committed, by (teacher, image-set key): all pairs of the pass.
        tell: is told how many images an earlier build had finished.

    Raises:
        RunFailed: rows are missing or there twice, or differ from what the teachers say live, and nothing stays staged;
            or the store failed, and all does.
    """
    keys = {
        images: {name: artifacts[name, images].key for name, key in artifacts if key == images}
        for _, images in artifacts
    }
    ids = {key: _ids(store, key) for key in spec.prefixes}
    files: dict[str, Staged] = {}
    for key, prefix in spec.prefixes.items():
        wanted = keys[key].items()  # an earlier build may have made others besides
        fits = partial(lambda wanted, note: wanted <= note.get("targets", {}).items(), wanted)
        files[key] = Staged(store, prefix, list(ids[key]), copies=spec.views.per_image, fits=fits)
    spec = replace(spec, targets=keys, prefixes={key: one.own for key, one in files.items()})
    for one in files.values():
        one.report(progress, tell)
    with ExitStack() as stack:
        for one in files.values():
            stack.enter_context(one.discarded_if_spoilt())
        cosine = _run(store, spec, files, ids, gpus, progress)
        notes = {key: verify(one, list(ids[key]), spec) for key, one in files.items()}
        if not cosine >= MIN_COSINE:
            raise Spoilt(
                f"targets: cached rows differ from a live forward (cosine {cosine:.4f}, allowed: {MIN_COSINE})"
            )
        return [
            _commit(files[key], item, name, len(ids[key]) * spec.views.per_image, notes[key], cosine)
            for (name, key), item in artifacts.items()
        ]


def _images(store: Store, key: str) -> Record:
    record = store.get(key)
    if record is None:
        raise RunFailed(f"images {key[:12]} are not in {store.uri}; run again to build them")
    return record


def _ids(store: Store, key: str) -> dict[str, int]:
    """Row by sample id of the images of a set that get targets."""
    record = _images(store, key)
    table = store.read_table(record, ["sample_id", "split"] if record.kind == "images" else ["sample_id"])
    rows = np.arange(len(table))
    if record.kind == "images":
        rows = rows[np.array(table["split"].to_pylist()) == "train"]
    return dict(zip(table["sample_id"].take(rows).to_pylist(), rows.tolist(), strict=True))


def _run(
    store: Store,
    spec: PassSpec,
    files: Mapping[str, Staged],
    ids: Mapping[str, Mapping[str, int]],
    gpus: float,
    progress: Progress | None,
) -> float:
    """Compute the rows that are missing; returns the least cosine of all rows that were checked, old and new."""
    new = [
        (key, row, "")
        for key, rows in ids.items()
        for sample_id, row in rows.items()
        if sample_id in files[key].missing
    ]
    old = [
        (key, ids[key][sample_id], f"{one.prefix}/{name}")
        for key, one in files.items()
        for name, kept in one.kept.items()
        for sample_id in kept
    ]
    every = max(1, len(old) * spec.views.per_image // CHECKED_ROWS)
    images, rows, names = zip(*new, *old[::every], strict=True)
    table = pa.table({"images": images, "row": rows, "file": names})
    spec = replace(spec, checked_share=min(1.0, CHECKED_ROWS / (len(table) * spec.views.per_image)))
    shape = Shape(BATCH_IMAGES, gpus=gpus, pool=shards.pool_size(len(table), BATCH_IMAGES))
    done = shards.run(table, partial(TargetsWorker, store=store, spec=spec), shape, progress)
    return min(float(summary["cosine"]) for summary in done)


def _commit(files: Staged, item: Artifact, teacher: str, rows: int, notes: Sequence[Note], cosine: float) -> Record:
    """One teacher's targets of one image set: its columns of the files that the pass shares."""
    names = {name: name for name in ("sample_id", "view", "box")}
    names |= {column: f"{teacher}.{column}" for column in item.spec["columns"]}
    seconds = math.fsum(note["seconds"][teacher] for note in notes)
    charge = Charge(stage="targets", key=item.key, seconds=seconds, device=devices(notes), units=item.units)
    return files.commit(
        item.key,
        "targets",
        dict(item.spec),
        columns=names,
        rows=rows,
        meta={"cosine": cosine},
        charge=charge,
        dependencies=item.dependencies,
    )
