"""The synthetic-images stage: a generator draws images of the dataset's classes, sharded by image.

Image `index` of class `label` is drawn from a seed that depends on (sweep seed, label, index) alone: it comes out the
same however the work is sharded, and asking for more images later makes only the new ones, as an artifact of its own
that holds the indices [start, stop) of every class. The real image that an image-to-image generator begins with is
chosen by that seed from the class's training images. Where a filter rejects an image, its next attempt has a seed of
its own; what the rejected ones cost is part of the artifact's charge.

Columns: sample_id string, label int32, index int32, image binary (raw uint8 RGB); from images also `begun_from` (the
real one's sample_id); with a filter also `score`, `rejects` and `accepted`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sweeper import adapted, cpu, registry, shards
from sweeper.errors import RunFailed
from sweeper.lease import Tell, untold
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.pixels import fit_square
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary
from sweeper.sieve import Verdict, sift
from sweeper.staged import Spoilt, Staged, devices
from sweeper.store import Record, Store
from sweeper.views import counter_uniform

BATCH_ROWS = 64
FILTERED_BATCHES = 4  # as many rows together, so that second attempts fill a generator's batch
_BEGIN = 0xB361


def image_seed(seed: int, label: int, index: int, attempt: int = 0) -> int:
    """The seed of one image's noise, below 2**53."""
    return int(counter_uniform(seed, 0x5EED, label, index, *([attempt] if attempt else [])) * 2**53)


class TrainingImages:
    """The training images of an images artifact by class, and never one of another split."""

    def __init__(self, store: Store, key: str) -> None:
        record = store.get(key)
        if record is None:
            raise RunFailed(f"images {key[:12]} are not in {store.uri}; run again to build them")
        self._size = int(record.meta["image_size"])
        table = store.read_table(record, ["sample_id", "label", "split", "image"])
        train = table.filter(np.array(table["split"].to_pylist()) == "train")
        self._ids, self._images = train["sample_id"].to_pylist(), train["image"]
        labels = train["label"].to_numpy()
        by_name = np.array(sorted(range(len(train)), key=self._ids.__getitem__))  # the order of the rows is no matter
        self._rows = {int(label): by_name[labels[by_name] == label] for label in np.unique(labels)}

    def pick(self, label: int, seed: int) -> tuple[str, np.ndarray]:
        """Sample id and uint8 RGB pixels [H, W, 3] of the image of a class that a seed chooses."""
        rows = self._rows[label]
        row = int(rows[int(counter_uniform(seed, _BEGIN) * len(rows))])
        pixels = np.frombuffer(self._images[row].as_py(), dtype=np.uint8)
        return self._ids[row], pixels.reshape(self._size, self._size, 3)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker draws, besides the rows that it is given."""

    config: Any
    class_names: Sequence[str]
    seed: int
    image_size: int
    images: str | None = None  # key of the images to begin from
    teacher: tuple[str, Settings] | None = None  # the filter's: key of the adapted one, and its settings


class GeneratorWorker:
    """Holds a generator on this process's device; writes the images of a batch of (label, index) rows."""

    def __init__(self, *, store: Store, prefix: str, job: Job) -> None:
        self.store, self.prefix, self.job = store, prefix, job
        self.device = cpu.device_of_stage()
        self.generator = registry.load("generators", job.config.kind).build(job.config, self.device)
        self.training = None if job.images is None else TrainingImages(store, job.images)
        self.filter: Any = None
        if job.config.filter is not None:
            teacher = job.teacher and adapted.load_teacher(store, *job.teacher, job.class_names)
            module = registry.load("filters", job.config.filter.kind)
            self.filter = module.build(job.config.filter, self.device, job.class_names, teacher)

    def __call__(self, rows: pa.Table) -> Summary:
        labels, indices = rows["label"].to_pylist(), rows["index"].to_pylist()
        with DeviceTimer(self.device) as timer:
            verdicts = self._verdicts(labels, indices)
        columns = {
            "sample_id": _sample_ids(rows),
            "label": pa.array(labels, pa.int32()),
            "index": pa.array(indices, pa.int32()),
            "image": [verdict.picture for verdict in verdicts],
        }
        if self.training is not None:
            seeds = self._seeds(labels, indices, [verdict.attempt for verdict in verdicts])
            picked = [self.training.pick(label, seed) for label, seed in zip(labels, seeds, strict=True)]
            columns["begun_from"] = [sample_id for sample_id, _ in picked]
        if self.filter is not None:
            columns["score"] = pa.array([verdict.score for verdict in verdicts], pa.float32())
            columns["rejects"] = pa.array([verdict.rejects for verdict in verdicts], pa.int32())
            columns["accepted"] = [verdict.accepted for verdict in verdicts]
        note = {"seconds": timer.seconds, "device": device_name(self.device)}
        size = shards.write_rows(self.store, self.prefix, pa.table(columns), [labels, indices], note)
        return {"rows": len(rows), "bytes": size}

    def _verdicts(self, labels: Sequence[int], indices: Sequence[int]) -> list[Verdict]:
        def draw(numbers: Sequence[int], attempts: Sequence[int]) -> list[bytes]:
            of = [labels[number] for number in numbers]
            seeds = self._seeds(of, [indices[number] for number in numbers], attempts)
            starts = None
            if self.training is not None:
                starts = [self.training.pick(label, seed)[1] for label, seed in zip(of, seeds, strict=True)]
            images_BHWC = self.generator.generate(of, self.job.class_names, seeds, starts)
            return [fit_square(image, self.job.image_size) for image in images_BHWC]

        if self.filter is None:
            return [Verdict(picture) for picture in draw(range(len(labels)), [0] * len(labels))]

        def judge(pictures: Sequence[bytes], numbers: Sequence[int]) -> list[float]:
            return self._scores(pictures, [labels[number] for number in numbers])

        attempts = self.job.config.filter.max_attempts
        size = self.generator.batch_size
        return sift(len(labels), draw, judge, least=self.filter.least, max_attempts=attempts, batch_size=size)

    def _seeds(self, labels: Sequence[int], indices: Sequence[int], attempts: Sequence[int]) -> list[int]:
        keys = zip(labels, indices, attempts, strict=True)
        return [image_seed(self.job.seed, label, index, attempt) for label, index, attempt in keys]

    def _scores(self, pictures: Sequence[bytes], labels: Sequence[int]) -> list[float]:
        """In batches of one size, the last one padded: rounding is the same among whichever neighbours."""
        side, size = self.job.image_size, BATCH_ROWS
        found: list[float] = []
        for begin in range(0, len(pictures), size):
            part = [np.frombuffer(raw, np.uint8).reshape(side, side, 3) for raw in pictures[begin : begin + size]]
            of = list(labels[begin : begin + size])
            padding = size - len(part)
            scores = self.filter.scores(np.stack(part + [part[-1]] * padding), of + [of[-1]] * padding)
            found += scores[: len(part)].tolist()
        return found


def build(
    store: Store,
    artifact: Artifact,
    config: Any,
    *,
    teachers: Mapping[str, Settings] | None = None,
    prefix: str | None = None,
    gpus: float = 0,
    progress: Progress | None = None,
    tell: Tell = untold,
) -> Record:
    """Draw the images of one synthetic artifact, verify that each is there once, and commit it.

    Args:
        config: of the source.
        teachers: of the file, by name, for a filter that asks one.
        prefix: where an earlier build staged some of its images, which are not drawn again; None: nowhere.
        tell: is told how many those are.

    Returns:
        The record. Where the source has a filter, `meta["filter"]` says how many images it kept, how many it rejected,
        and how many slots were `exhausted`: no attempt passed, and the best is there.

    Raises:
        RunFailed: images are missing or there twice, and nothing stays staged; or the store failed, and all does.
    """
    spec: dict[str, Any] = dict(artifact.spec)
    num_classes = len(spec["class_names"])
    index, label = np.meshgrid(np.arange(spec["start"], spec["stop"]), np.arange(num_classes), indexing="ij")
    rows = pa.table({"label": label.reshape(-1), "index": index.reshape(-1)})
    ids = _sample_ids(rows)
    files = Staged(store, prefix or store.staging(), ids)
    rows = rows.filter(np.array([sample_id in files.missing for sample_id in ids]))
    files.report(progress, tell)
    make = partial(GeneratorWorker, store=store, prefix=files.own, job=job_of(artifact, config, teachers or {}))
    batch_rows = BATCH_ROWS * (FILTERED_BATCHES if config.filter else 1)
    shape = Shape(batch_rows, gpus=gpus, pool=shards.pool_size(len(rows), batch_rows))
    with files.discarded_if_spoilt():
        shards.run(rows, make, shape, progress)
        table, notes = files.read(["sample_id", *(["rejects", "accepted"] if config.filter else [])])
        written = table["sample_id"].to_pylist()
        if len(written) != len(ids) or set(written) != set(ids):
            raise Spoilt(f"synthetic images: {len(set(written))} of {len(ids)} were written, in {len(written)} rows")
        charge = Charge(
            stage="synthetic",
            key=artifact.key,
            seconds=math.fsum(note["seconds"] for note in notes),
            device=devices(notes),
            units=len(ids),
        )
        meta: dict[str, Any] = {"image_size": spec["image_size"]}
        if config.filter:
            meta["filter"] = {"kind": config.filter.kind, **_counts(table)}
        depends = {"dependencies": artifact.dependencies}
        return files.commit(artifact.key, "synthetic", spec, rows=len(ids), meta=meta, charge=charge, **depends)


def _counts(table: pa.Table) -> dict[str, int]:
    """Of the filter's verdicts."""
    accepted, rejects = table["accepted"].to_pylist(), table["rejects"].to_pylist()
    return {"kept": sum(accepted), "rejected": sum(rejects), "exhausted": len(table) - sum(accepted)}


def job_of(artifact: Artifact, config: Any, teachers: Mapping[str, Settings]) -> Job:
    """What the workers of an artifact need to know."""
    spec = artifact.spec
    adapt = spec.get("filter", {}).get("adapt")
    return Job(
        config=config,
        class_names=tuple(spec["class_names"]),
        seed=spec["seed"],
        image_size=spec["image_size"],
        images=spec.get("images"),
        teacher=(adapt, teachers[config.filter.teacher]) if adapt else None,
    )


def _sample_ids(rows: pa.Table) -> list[str]:
    pairs = zip(rows["label"].to_pylist(), rows["index"].to_pylist(), strict=True)
    return [f"synthetic/{label}/{index}" for label, index in pairs]
