"""The synthetic-images stage: a generator draws images of the dataset's classes, sharded by image.

Image `index` of class `label` is drawn from a seed that depends on (sweep seed, label, index) alone: it comes out the
same however the work is sharded, and asking for more images later makes only the new ones, as an artifact of its own
that holds the indices [start, stop) of every class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sweeper import ingest, registry, shards
from sweeper.lease import Tell, untold
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary
from sweeper.staged import Spoilt, Staged, devices
from sweeper.store import Record, Store
from sweeper.views import counter_uniform

BATCH_ROWS = 64


def image_seed(seed: int, label: int, index: int) -> int:
    """The seed of one image's noise, below 2**53."""
    return int(counter_uniform(seed, 0x5EED, label, index) * 2**53)


class GeneratorWorker:
    """Holds a generator on this process's device; writes the images of a batch of (label, index) rows."""

    def __init__(
        self, *, store: Store, prefix: str, config: Settings, class_names: Sequence[str], seed: int, image_size: int
    ) -> None:
        import torch

        self.store, self.prefix, self.class_names = store, prefix, class_names
        self.seed, self.image_size = seed, image_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.generator = registry.load("generators", config.kind).build(config, self.device)  # type: ignore[attr-defined]

    def __call__(self, rows: pa.Table) -> Summary:
        labels, indices = rows["label"].to_pylist(), rows["index"].to_pylist()
        seeds = [image_seed(self.seed, label, index) for label, index in zip(labels, indices, strict=True)]
        with DeviceTimer(self.device) as timer:
            images_BHWC = self.generator.generate(labels, self.class_names, seeds)
        table = pa.table(
            {
                "sample_id": _sample_ids(rows),
                "label": pa.array(labels, pa.int32()),
                "index": pa.array(indices, pa.int32()),
                "image": [ingest.fit_square(image, self.image_size) for image in images_BHWC],
            }
        )
        note = {"seconds": timer.seconds, "device": device_name(self.device)}
        shards.write_rows(self.store, self.prefix, table, [labels, indices], note)
        return {"rows": len(rows)}


def build(
    store: Store,
    artifact: Artifact,
    config: Settings,
    *,
    prefix: str | None = None,
    gpus: float = 0,
    progress: Progress | None = None,
    tell: Tell = untold,
) -> Record:
    """Draw the images of one synthetic artifact, verify that each is there once, and commit it.

    Args:
        prefix: where an earlier build staged some of its images, which are not drawn again; None: nowhere.
        tell: is told how many those are.

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
    make = partial(
        GeneratorWorker,
        store=store,
        prefix=files.own,
        config=config,
        class_names=tuple(spec["class_names"]),
        seed=spec["seed"],
        image_size=spec["image_size"],
    )
    shape = Shape(BATCH_ROWS, gpus=gpus, pool=shards.pool_size(len(rows), BATCH_ROWS, gpus=gpus > 0))
    with files.discarded_if_spoilt():
        shards.run(rows, make, shape, progress)
        table, notes = files.read(["sample_id"])
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
        meta = {"image_size": spec["image_size"]}
        return files.commit(artifact.key, "synthetic", spec, rows=len(ids), meta=meta, charge=charge)


def _sample_ids(rows: pa.Table) -> list[str]:
    pairs = zip(rows["label"].to_pylist(), rows["index"].to_pylist(), strict=True)
    return [f"synthetic/{label}/{index}" for label, index in pairs]
