"""Small made-up data for the tests of the training side: three colours at 16 px, tiny models, artifacts in a store."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sweeper import views
from sweeper.batches import ImageSplit, TrialData
from sweeper.config import SweepConfig
from sweeper.datasets import DatasetIndex
from sweeper.outcome import EpochReport
from sweeper.plan import Artifact
from sweeper.sources import CachedTargets
from sweeper.space import Space
from sweeper.store import Record, Store
from sweeper.trial import TrialConfig
from sweeper.views import ViewConfig

SIZE = 16
CLASS_NAMES = ("red", "green", "blue")
ARCHITECTURE = "test_efficientnet"
WIDTH = 6  # of the made-up teacher's embedding
VIEWS = ViewConfig(per_image=4, flip=True)
ROWS_OF_GROUP = 4
torch.set_num_threads(1)


def colour_split(num: int, seed: int = 0) -> ImageSplit:
    """Noise with one bright channel, which is the class: separable, and no two images are equal."""
    rng = np.random.default_rng(seed)
    labels_B = np.arange(num) % len(CLASS_NAMES)
    images_BCHW = rng.integers(0, 128, (num, 3, SIZE, SIZE), dtype=np.uint8)
    images_BCHW[np.arange(num), labels_B] += 100
    return ImageSplit(torch.from_numpy(images_BCHW), torch.from_numpy(labels_B))


def sample_ids(num: int, prefix: str = "train") -> list[str]:
    return [f"{prefix}/{i}" for i in range(num)]


def made_up_targets(split: ImageSplit, keys_N: np.ndarray, config: ViewConfig = VIEWS, seed: int = 0) -> CachedTargets:
    """A good teacher's outputs: logits that favour the label, and a noisy embedding of it."""
    shape = (len(split), config.per_image)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, len(CLASS_NAMES))) + 4 * np.eye(len(CLASS_NAMES))[split.labels_B][:, None]
    embedding = rng.normal(size=(*shape, WIDTH)) + np.eye(WIDTH)[split.labels_B][:, None]
    views_NVP = views.draw_views(config, seed, keys_N, np.tile(np.arange(config.per_image), (len(split), 1)))
    columns = {"logits": logits, "embedding": embedding, "pre_embedding": embedding - 0.5}
    classifier = (torch.eye(WIDTH)[: len(CLASS_NAMES)], torch.zeros(len(CLASS_NAMES)))
    return CachedTargets(
        keys_N=keys_N,
        views_NVP=views_NVP,
        columns={name: torch.from_numpy(values).half() for name, values in columns.items()},
        classifiers=(classifier,),
        widths=(WIDTH,),
    )


def trial_data(num_train: int = 18, *, taught: bool = False, **changes: Any) -> TrialData:
    train = colour_split(num_train)
    keys_N = np.array([views.sample_key(s) for s in sample_ids(num_train)], dtype=np.uint64)
    values: dict[str, Any] = {
        "train": train,
        "keys_N": keys_N,
        "num_real": num_train,
        "source": made_up_targets(train, keys_N) if taught else None,
        "val": colour_split(12, seed=1),
        "test": colour_split(12, seed=2),
        "class_names": CLASS_NAMES,
        "image_size": SIZE,
        "views": VIEWS,
        "view_seed": 0,
    }
    return TrialData(**{**values, **changes})


def trial_config(
    *, model_args: Mapping[str, Any] | None = None, loss: Mapping[str, Any] | None = None, **train: Any
) -> TrialConfig:
    """With a teacher exactly where `loss` is given."""
    recipe = {"epochs": 3, "batch_size": 6, "lr": 3e-3, **train}
    student = {"model": ARCHITECTURE, "model_args": dict(model_args or {})}
    config: dict[str, Any] = {"student": student, "train": recipe}
    if loss is not None:
        config |= {"teacher": "t", "loss": dict(loss)}
    return TrialConfig.model_validate(config).resolved()


ALL_TERMS = {
    "ce": 1.0,
    "kl": {"weight": 1.0, "temperature": 2.0},
    "embedding": {"kind": "align_uniform", "weight": 0.5},
}


class MemorySlot:
    """A checkpoint in memory."""

    def __init__(self, state: bytes | None = None) -> None:
        self.state = state

    def load(self) -> bytes | None:
        return self.state

    def save(self, state: bytes) -> None:
        self.state = state

    def is_urgent(self) -> bool:
        return False


def always(_: EpochReport) -> bool:
    return True


def write_parquet(store: Store, prefix: str, columns: Mapping[str, Any], name: str = "rows.parquet") -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, row_group_size=ROWS_OF_GROUP, write_page_checksum=True)
    store.write_bytes(prefix, name, buffer.getvalue())


def raw_images(split: ImageSplit) -> list[bytes]:
    return [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in split.images_BCHW]


def commit_images(store: Store, counts: Mapping[str, int], key: str = "images") -> Record:
    """An images artifact with so many colour images of each split, its rows mixed over the splits."""
    parts = {split: colour_split(num, seed) for seed, (split, num) in enumerate(counts.items())}
    columns: dict[str, list[Any]] = {
        "sample_id": [f"{split}/{i}" for split, part in parts.items() for i in range(len(part))],
        "label": [int(label) for part in parts.values() for label in part.labels_B],
        "split": [split for split, part in parts.items() for _ in range(len(part))],
        "image": [image for part in parts.values() for image in raw_images(part)],
    }
    order = np.random.default_rng(0).permutation(len(columns["label"]))
    shuffled: dict[str, Any] = {name: [values[i] for i in order] for name, values in columns.items()}
    shuffled["label"] = pa.array(shuffled["label"], pa.int32())
    prefix = store.staging()
    write_parquet(store, prefix, shuffled)
    meta = {"image_size": SIZE, "class_names": list(CLASS_NAMES)}
    return store.commit(key, "images", {"name": key}, prefix, meta=meta, rows=len(order))


def commit_artifact(store: Store, item: Artifact, **fields: Any) -> Record:
    """An artifact of a plan with one small file in place of what a stage would write."""
    prefix = store.staging()
    store.write_bytes(prefix, "data.bin", item.key.encode())
    return store.commit(item.key, item.kind, item.spec, prefix, dependencies=item.dependencies, **fields)


def dataset_index(num_train: int = 12, content: str = "c0", class_names: Sequence[str] = CLASS_NAMES) -> DatasetIndex:
    splits = ["train"] * num_train + ["val"] * 6 + ["test"] * 9
    ids = [f"{split}/{i}" for i, split in enumerate(splits)]
    labels = np.arange(len(ids), dtype=np.int64) % len(class_names)
    return DatasetIndex(tuple(class_names), ids, labels, splits, ids, content)


TRIAL_TREE: dict[str, Any] = {
    "teacher": {"choice": ["cnn", "vit", "none"]},
    "student": {"model": {"choice": ["test_resnet", ARCHITECTURE]}},
    "synthetic": {"source": "sd", "ratio": {"choice": [0, 0.5, 2]}, "labels": {"choice": ["hard", "distill_only"]}},
    "loss": {
        "ce": {"uniform": [0.1, 1]},
        "kl": {"weight": {"uniform": [0, 2]}, "temperature": {"loguniform": [1, 8]}},
        "embedding": {
            "kind": {"choice": ["none", "align_uniform", "kdep"]},
            "weight": {"loguniform": [0.1, 10], "when": {"loss.embedding.kind": ["align_uniform", "kdep"]}},
        },
    },
    "train": {
        "epochs": 10,
        "batch_size": {"choice": [8, 16]},
        "lr": {"loguniform": [1e-4, 1e-2]},
        "warmup": {"quniform": [0.0, 0.2, 0.05]},
        "epoch_size": {"randint": [12, 25]},
    },
}


def sweep_config(**changes: Any) -> SweepConfig:
    """Two teachers, one source of images and a conditional space; nothing of it is built by the tests."""
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 0,
        "dataset": {"kind": "digits", "train_per_class": 5},
        "views": VIEWS.model_dump(),
        "teachers": {
            "cnn": {"kind": "timm", "model": "test_resnet", "weights": "none"},
            "vit": {"kind": "timm", "model": "test_vit", "weights": "none"},
        },
        "synthetic": {"sd": {"kind": "diffusers", "model": "nobody/nothing", "prompt": "a {label}", "max_ratio": 4}},
        "trial": TRIAL_TREE,
        "search": {"trials": 8},
    }
    return SweepConfig.model_validate({**values, **changes})


def space_of(config: SweepConfig) -> Space:
    return Space(config.trial)
