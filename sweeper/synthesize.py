"""The synthetic-images stage: a generator draws images of the dataset's classes, sharded by image.

Image `index` of class `label` is drawn from a seed that depends on (sweep seed, label, index) alone: it comes out the
same however the work is sharded, and asking for more images later makes only the new ones, as an artifact of its own
that holds the indices [start, stop) of every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sweeper import ingest, registry, shards
from sweeper.errors import RunFailed
from sweeper.ledger import Charge, DeviceTimer, device_name
from sweeper.plan import Artifact
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary
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
                "sample_id": [f"synthetic/{label}/{index}" for label, index in zip(labels, indices, strict=True)],
                "label": pa.array(labels, pa.int32()),
                "index": pa.array(indices, pa.int32()),
                "image": [ingest.fit_square(image, self.image_size) for image in images_BHWC],
            }
        )
        shards.write_rows(self.store, self.prefix, table, [labels, indices])
        return {"rows": len(rows), "seconds": timer.seconds, "device": device_name(self.device)}


def build(
    store: Store, artifact: Artifact, config: Settings, *, gpus: float = 0, progress: Progress | None = None
) -> Record:
    """Draw the images of one synthetic artifact, verify that each is there once, and commit it.

    Raises:
        RunFailed: images are missing or there twice.
    """
    spec: dict[str, Any] = dict(artifact.spec)
    num_classes = len(spec["class_names"])
    index, label = np.meshgrid(np.arange(spec["start"], spec["stop"]), np.arange(num_classes), indexing="ij")
    rows = pa.table({"label": label.reshape(-1), "index": index.reshape(-1)})
    prefix = store.staging()
    make = partial(
        GeneratorWorker,
        store=store,
        prefix=prefix,
        config=config,
        class_names=tuple(spec["class_names"]),
        seed=spec["seed"],
        image_size=spec["image_size"],
    )
    shape = Shape(BATCH_ROWS, gpus=gpus, pool=shards.pool_size(len(rows), BATCH_ROWS, gpus=gpus > 0))
    try:
        done = shards.run(rows, make, shape, progress)
        ids = shards.written(store, prefix, ["sample_id"])["sample_id"].to_pylist()
        if len(ids) != len(rows) or len(set(ids)) != len(rows):
            raise RunFailed(f"synthetic images: {len(set(ids))} of {len(rows)} were written, in {len(ids)} rows")
        charge = Charge(
            stage="synthetic",
            key=artifact.key,
            seconds=sum(s["seconds"] for s in done),
            device=done[0]["device"],
            units=len(rows),
        )
        meta = {"image_size": spec["image_size"]}
        return store.commit(artifact.key, "synthetic", spec, prefix, rows=len(rows), meta=meta, charge=charge)
    except BaseException:
        store.discard(prefix)
        raise
