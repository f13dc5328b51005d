"""Pairs of teacher and student made ready for `cached_vs_online.py`: images, the teacher, and its cache."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sweeper import adapt, probe, registry, views
from sweeper.batches import ImageSplit, TrialData
from sweeper.datasets import digits
from sweeper.sources import CachedTargets, LiveTeacher, view_targets
from sweeper.views import ViewConfig

CACHE_BATCH = 256
NUM_CLASSES = 10
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much is measured, without a GPU and with one. `batches`: images there are, in batches."""

    batch: int
    steps: int
    repeats: int
    batches: int = 4


@dataclass(frozen=True)
class Pair:
    """A teacher (a `sweeper.teachers.timm` section), a student, and the views; `embedded` is about real images."""

    teacher: Mapping[str, Any]
    student: str
    views: ViewConfig
    image_size: int
    cpu: Size
    gpu: Size
    embedded: bool = False


def _large(model: str) -> Pair:
    return Pair(
        teacher={"model": model, "weights": "none", "adapt": "none"},
        student="mobilenetv2_100",
        views=ViewConfig(per_image=4, flip=True),
        image_size=224,
        cpu=Size(batch=8, steps=2, repeats=8),
        gpu=Size(batch=64, steps=30, repeats=5),
    )


PAIRS = {
    "embedded": Pair(
        teacher={"weights": "zoo:cnn"},
        student="test_resnet",
        views=ViewConfig(per_image=32),
        image_size=32,
        cpu=Size(batch=64, steps=10, repeats=20),
        gpu=Size(batch=64, steps=100, repeats=7),
        embedded=True,
    ),
    "resnet50": _large("resnet50"),
    "vit_b16": _large("vit_base_patch16_224"),
}


@dataclass(frozen=True)
class Task:
    """A pair made ready: the trial's data for each way, and what the cache pass took."""

    data: Mapping[str, TrialData]
    cache_s: float
    cache_rows: int


def seconds_now(device: torch.device) -> float:
    """The clock once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def digit_images(size: int) -> dict[str, tuple[list[str], ImageSplit]]:
    """The splits of the datalimited task: sample ids, images and labels."""
    config = digits.Config(train_per_class=3, image_size=size)
    index = digits.index(config, SEED)
    found = {}
    for name in ("train", "val", "test"):
        rows = [i for i, split in enumerate(index.splits) if split == name]
        pictures: Any = digits.decode(config, [index.sources[i] for i in rows])
        pixels_BHWC = np.stack([np.asarray(picture.resize((size, size), 3)) for picture in pictures])  # 3: bicubic
        images_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2)))
        found[name] = (
            [index.sample_ids[i] for i in rows],
            ImageSplit(images_BCHW, torch.from_numpy(index.labels[rows])),
        )
    return found


def made_up_images(num: int, size: int) -> dict[str, tuple[list[str], ImageSplit]]:
    """Coloured blocks, which a crop changes much; one image to validate on, for nothing is to be learnt."""
    rng = np.random.default_rng(SEED)
    found = {}
    for name, count in (("train", num), ("val", 1)):
        blocks = rng.integers(0, 256, (count, 3, 7, 7), dtype=np.uint8).repeat(size // 7, 2).repeat(size // 7, 3)
        labels_B = torch.arange(count) % NUM_CLASSES
        found[name] = ([f"{name}/{i}" for i in range(count)], ImageSplit(torch.from_numpy(blocks), labels_B))
    return found


def prepare(pair: Pair, num_images: int, device: torch.device) -> Task:
    """Images, teacher and cache of a pair; the embedded teacher gets its linear probe, as in the sweep."""
    splits = digit_images(pair.image_size) if pair.embedded else made_up_images(num_images, pair.image_size)
    ids, images = splits["train"]
    kind = registry.load("teachers", "timm")
    teacher = kind.build(kind.Config.model_validate(pair.teacher), digits.CLASS_NAMES).to(device)
    if pair.embedded:
        (train_ND, _), (val_MD, _) = (adapt.embed(teacher, splits[name][1], device) for name in ("train", "val"))
        head = probe.fit(train_ND, images.labels_B, val_MD, splits["val"][1].labels_B, device=device)
        teacher.with_classifier(head.weight.detach(), head.bias.detach())
    keys_N = np.array([views.sample_key(sample_id) for sample_id in ids], dtype=np.uint64)
    live = LiveTeacher(teacher=teacher, keys_N=keys_N, views=pair.views, view_seed=SEED)
    cache(live, ImageSplit(images.images_BCHW[:2], images.labels_B[:2]), device)  # the first forward loads kernels
    started = seconds_now(device)
    cached = cache(live, images, device)
    cache_s = seconds_now(device) - started
    alone = TrialData(
        train=images,
        keys_N=keys_N,
        num_real=len(images),
        source=None,
        val=splits["val"][1],
        test=splits["test"][1] if "test" in splits else None,
        class_names=digits.CLASS_NAMES,
        image_size=pair.image_size,
        views=pair.views,
        view_seed=SEED,
    )
    data = {"cached": replace(alone, source=cached), "online": replace(alone, source=live), "no_teacher": alone}
    return Task(data, cache_s, len(images) * pair.views.per_image)


def cache(live: LiveTeacher, images: ImageSplit, device: torch.device) -> CachedTargets:
    """What the targets stage stores of a teacher for all views of the images."""
    num_views = live.views.per_image
    keys_N = live.keys_N[: len(images)]
    view_NV = np.tile(np.arange(num_views), (len(images), 1))
    views_NVP = views.draw_views(live.views, live.view_seed, keys_N, view_NV)
    owner_R = np.repeat(np.arange(len(images)), num_views)
    found: dict[str, list[np.ndarray]] = {"logits": [], "embedding": []}
    for start in range(0, len(owner_R), CACHE_BATCH):
        rows = slice(start, start + CACHE_BATCH)
        whole_BCHW = images.images_BCHW[owner_R[rows]]
        out = view_targets(live.teacher, tuple(found), whole_BCHW, views_NVP.reshape(len(owner_R), -1)[rows], device)
        for name, values in out.items():
            found[name].append(values)
    shape = (len(images), num_views, -1)
    return CachedTargets(
        keys_N=keys_N,
        views_NVP=views_NVP,
        columns={name: torch.from_numpy(np.concatenate(parts)).view(shape) for name, parts in found.items()},
        classifiers=live.classifiers,
        widths=live.widths,
    )
