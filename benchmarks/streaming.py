"""What does a training cost whose images a node has no room for? The same one, its images held and streamed.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py

Plain torch, no Ray. Images, as `ingest` writes them, lie in a store in a temporary folder; a trial's data are read from
it twice, once as the arrays that a node's lanes share and once, with neither room in its cache nor memory, as
`streamed` reads them. Figures are images a second of wall time, medians over rounds that alternate:

- **feeding**: batches made and thrown away, of a whole pass a round;
- **training**: steps of a student with cross-entropy.

`ratio` = streamed / held. The operating system may keep the store's files in memory: a store at a distance is slower,
and hidden behind the student for as long as it gives `megabytes_s`, which is what the student trains through. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sweeper import cpu, data_cache, ingest
from sweeper.batches import DataRefs, StreamedSplit, TrialData
from sweeper.data_cache import DataCache
from sweeper.feeding import BatchStream
from sweeper.store import Store
from sweeper.train import Trainer, World
from sweeper.trial import TrialConfig
from sweeper.views import ViewConfig

SEED, NUM_CLASSES, KEY = 0, 10, "images"
NUM_EVALUATED = 16


def write(store: Store, num: int, size: int) -> None:
    """Smooth noise, which compresses about as photographs do, in files of `ingest.BLOCK_BYTES`."""
    rng = np.random.default_rng(SEED)
    prefix = store.staging()
    per_file = max(1, ingest.BLOCK_BYTES // (3 * size**2))
    splits = ["train"] * num + ["val"] * NUM_EVALUATED
    for start in range(0, len(splits), per_file):
        rows = range(start, min(start + per_file, len(splits)))
        coarse = rng.integers(0, 224, (len(rows), size // 4, size // 4, 3), dtype=np.uint8)
        images = coarse.repeat(4, axis=1).repeat(4, axis=2) + rng.integers(0, 32, (len(rows), size, size, 3), np.uint8)
        table = pa.table(
            {
                "sample_id": [f"{row:08d}" for row in rows],
                "label": pa.array([row % NUM_CLASSES for row in rows], pa.int32()),
                "split": [splits[row] for row in rows],
                "image": pa.array([image.tobytes() for image in images], pa.binary()),
            },
            schema=ingest.SCHEMA,
        )
        store.write_bytes(prefix, f"images-{start:010d}.parquet", ingest.encoded(table, size))
    meta = {"image_size": size, "class_names": [str(number) for number in range(NUM_CLASSES)]}
    store.commit(KEY, "images", {}, prefix, rows=len(splits), meta=meta)


def trial_data(store: Store) -> TrialData:
    views = ViewConfig(per_image=1, flip=True)
    refs = DataRefs(images=KEY)
    return DataCache(store).trial_data(refs, needs=frozenset(), view_config=views, view_seed=SEED, with_test=False)


def trainer(model: str, data: TrialData, batch_size: int, steps: int) -> Trainer:
    train = {"epochs": 1000, "epoch_size": steps * batch_size, "batch_size": batch_size, "schedule": "constant"}
    config = TrialConfig.model_validate({"student": {"model": model}, "train": train | {"warmup": 0.0}}).resolved()
    return Trainer(config, data, seed=SEED, device=torch.device("cpu"), world=World())


def speeds(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Images a second of each way; the first round of each does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            num_images = run()
            if number:
                found[name].append(num_images / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def feeding(data: TrialData, batch_size: int) -> Callable[[], int]:
    stream = BatchStream(data, batch_size=batch_size, seed=SEED, device=torch.device("cpu"))
    place = 0

    def run() -> int:
        nonlocal place
        began, place = place, place + len(data.train) // batch_size * batch_size
        return sum(len(batch.labels_B) for batch in stream.batches(began, place))

    return run


def training(model: str, data: TrialData, batch_size: int, steps: int) -> Callable[[], int]:
    running = trainer(model, data, batch_size, steps)

    def run() -> int:
        running.run_epoch()
        return steps * batch_size

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--student", default="mobilenetv2_035")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="of a round of training")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    cpu.prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SWEEPER_CACHE": f"{folder}/cache", "SWEEPER_CACHE_GB": "20"}
        store = Store(f"{folder}/store")
        write(store, options.images, options.size)
        held = trial_data(store)
        os.environ["SWEEPER_CACHE_GB"] = "0"
        data_cache.memory_free = lambda: 3 * options.size**2 * NUM_EVALUATED
        streamed = trial_data(store)
        assert isinstance(streamed.train, StreamedSplit)
        data = {"held": held, "streamed": streamed}
        found: dict[str, Any] = {"images": options.images, "size": options.size, "student": options.student}
        for what, ways in (
            ("feeding", {name: feeding(one, options.batch_size) for name, one in data.items()}),
            (
                "training",
                {name: training(options.student, one, options.batch_size, options.steps) for name, one in data.items()},
            ),
        ):
            told = speeds(ways, options.repeats)
            found |= {f"{what}_{name}_images_s": round(value, 1) for name, value in told.items()}
            found[f"{what}_ratio"] = round(told["streamed"] / told["held"], 3)
            print(f"{what:<10}" + "".join(f"{name} {v:>9,.0f} images/s   " for name, v in told.items()), end="")
            print(f"ratio {found[f'{what}_ratio']:.3f}", flush=True)
        found["megabytes_s"] = round(found["training_held_images_s"] * 3 * options.size**2 / 1e6, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
