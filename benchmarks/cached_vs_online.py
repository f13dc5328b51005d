"""What cached targets save: the same trial from a cache, with its teacher in the loop, and without a teacher.

    python benchmarks/cached_vs_online.py

Plain torch, no Ray. Every pair of teacher and student is trained three ways by `train.Trainer`, with equal seeds, views
and losses (cross-entropy, KL and `align_uniform`):

- **cached**: `sources.CachedTargets`, filled before; the cache pass is timed and shown apart;
- **online**: `sources.LiveTeacher`, the same teacher on the same views, in float32 as in the cache pass, or in
  `--teacher-precision bf16`, which makes this side faster than sweeper's own;
- **no teacher**: cross-entropy alone, the yardstick. Its views are fresh ones by the same law, which costs the same.

Images a second are those of whole rounds of `--steps` steps, the device synchronised before and after; the median over
`--repeats` rounds, which alternate (cached, online, none, cached, ...) so that a busy machine slows all three. A first
round of each does not count. `pays off` is the number of passes over the images after which the cache pass has cost
less than the teacher in the loop would have; the next trial reads it for nothing.

`embedded` is the task of `search_spaces/datalimited.yaml` and is trained to its end as well, cached and online, for the
difference in accuracy. The other two have random weights and made-up images at 224 px, where only the first losses
compare: `loss difference` is the largest relative one of three steps, raw losses. The targets' fp16 is all that tells
the two ways apart; what AdamW makes of a gradient's rounding grows with each step. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sweeper import adapt, registry, train, views
from sweeper.batches import ImageSplit, TrialData
from sweeper.datasets import digits
from sweeper.losses import COLUMNS
from sweeper.sources import CachedTargets, LiveTeacher, Sight
from sweeper.trial import NO_TEACHER, TrialConfig
from sweeper.views import ViewConfig

WAYS = ("cached", "online", "no_teacher")
CACHE_BATCH = 256  # as `targets.FORWARD_BATCH`, whose module needs Ray
NUM_CLASSES = 10
FIRST_STEPS = 3
SEED = 0
TERMS: dict[str, Any] = {
    "ce": 1.0,
    "kl": {"weight": 1.0, "temperature": 4.0},
    "embedding": {"kind": "align_uniform", "weight": 1.0},
}
# Of search_spaces/datalimited.yaml, as the whole training of the embedded pair.
RECIPE: dict[str, Any] = {"epochs": 15, "epoch_size": 640, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.01}
NO_CHECKPOINTS: Any = SimpleNamespace(load=lambda: None, save=lambda state: None)


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
        cpu=Size(batch=8, steps=3, repeats=3),
        gpu=Size(batch=64, steps=30, repeats=5),
    )


PAIRS = {
    "embedded": Pair(
        teacher={"weights": "zoo:cnn"},
        student="test_resnet",
        views=ViewConfig(per_image=32),
        image_size=32,
        cpu=Size(batch=64, steps=20, repeats=7),
        gpu=Size(batch=64, steps=100, repeats=7),
        embedded=True,
    ),
    "resnet50": _large("resnet50"),
    "vit_b16": _large("vit_base_patch16_224"),
}


class Bf16Teacher:
    """A teacher under autocast, for `--teacher-precision bf16`; everything else is the teacher's own."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def to(self, device: torch.device) -> Bf16Teacher:
        return Bf16Teacher(self._teacher.to(device))

    def __call__(self, images_BCHW: torch.Tensor, **asked: Any) -> Any:
        with torch.autocast(images_BCHW.device.type, dtype=torch.bfloat16):
            return self._teacher(images_BCHW, **asked)


@dataclass(frozen=True)
class Task:
    """A pair made ready: the trial's data for each way, and what the cache pass took."""

    data: Mapping[str, TrialData]
    cache_s: float
    cache_rows: int


def trial(pair: Pair, way: str, *, normalize: bool = True, **recipe: Any) -> TrialConfig:
    """The one configuration, with a teacher or without."""
    taught = {"teacher": "t", "loss": {n: {**t, "normalize": normalize} if n != "ce" else t for n, t in TERMS.items()}}
    return TrialConfig.model_validate(
        {
            **(taught if way != "no_teacher" else {"teacher": NO_TEACHER}),
            "student": {"model": pair.student},
            "train": {**RECIPE, **recipe},
        }
    ).resolved()


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
        found[name] = ([index.sample_ids[i] for i in rows], ImageSplit(images_BCHW, torch.from_numpy(index.labels[rows])))
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
        labels_M = splits["val"][1].labels_B.numpy()
        head = adapt.fit_probe(train_ND.numpy(), images.labels_B.numpy(), val_MD.numpy(), labels_M)
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
    """What the targets stage stores of a teacher, for all views of the images: its forward, in fp16, on the CPU."""
    num_views = live.views.per_image
    keys_N = live.keys_N[: len(images)]
    view_NV = np.tile(np.arange(num_views), (len(images), 1))
    views_NV5 = views.draw_views(live.views, live.view_seed, keys_N, view_NV)
    owner_R = np.repeat(np.arange(len(images)), num_views)
    boxes_R5 = torch.from_numpy(views_NV5.reshape(-1, 5))
    found: dict[str, list[torch.Tensor]] = {"logits": [], "embedding": []}
    for start in range(0, len(owner_R), CACHE_BATCH):
        rows = slice(start, start + CACHE_BATCH)
        whole_BCHW = images.images_BCHW[owner_R[rows]].to(device)
        sight = Sight(owner_R[rows], view_NV.ravel()[rows], whole_BCHW, boxes_R5[rows].to(device), whole_BCHW)
        out = live.targets(sight)
        assert out.logits_BK is not None
        assert out.embedding_BT is not None
        found["logits"].append(out.logits_BK.half().cpu())
        found["embedding"].append(out.embedding_BT.half().cpu())
    return CachedTargets(
        keys_N=keys_N,
        views_NV5=views_NV5,
        columns={name: torch.cat(parts).view(len(images), num_views, -1) for name, parts in found.items()},
        classifier=live.classifier,
        widths=live.widths,
    )


def seconds_now(device: torch.device) -> float:
    """The clock once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def trainer(pair: Pair, task: Task, way: str, device: torch.device, **recipe: Any) -> train.Trainer:
    """One way's trial before its first step."""
    config = trial(pair, way, **{"schedule": "constant", "warmup": 0.0, **recipe})
    return train.Trainer(config, task.data[way], seed=SEED, device=device, world=train.World())


def speeds(pair: Pair, task: Task, size: Size, device: torch.device, precision: str) -> dict[str, list[float]]:
    """Images a second of each way, a figure a round."""
    recipe = {"epochs": size.repeats + 1, "epoch_size": size.steps * size.batch, "batch_size": size.batch}
    trainers = {way: trainer(pair, task, way, device, **recipe, precision=precision) for way in WAYS}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(size.repeats + 1):
        for way, running in trainers.items():
            started = seconds_now(device)
            running.run_epoch()
            seconds = seconds_now(device) - started
            if number:
                found[way].append(size.steps * size.batch / seconds)
    return found


def first_losses(pair: Pair, task: Task, way: str, size: Size, device: torch.device) -> list[float]:
    """Of the first steps: epochs of one batch, raw losses, since the first normalised one is 1 whatever comes in."""
    recipe = {"epochs": FIRST_STEPS, "epoch_size": size.batch, "batch_size": size.batch}
    running = trainer(pair, task, way, device, **recipe, normalize=False)
    found = []
    for _ in range(FIRST_STEPS):
        running.run_epoch()
        found.append(running.last_loss)
    return found


def loss_difference(pair: Pair, task: Task, size: Size, device: torch.device) -> float:
    """The largest relative difference between the first losses from the cache and from the live teacher."""
    cached, online = (first_losses(pair, task, way, size, device) for way in ("cached", "online"))
    return max(abs(a - b) / abs(b) for a, b in zip(cached, online, strict=True))


def accuracies(pair: Pair, task: Task, way: str, seeds: int, device: torch.device, epochs: int) -> list[float]:
    """On the test split, after whole trainings."""
    found = []
    for seed in range(seeds):
        outcome = train.fit(
            trial(pair, way, epochs=epochs),
            task.data[way],
            seed=seed,
            device=device,
            report=lambda _: True,
            slot=NO_CHECKPOINTS,
            with_test=True,
            keep_model=False,
        )
        assert outcome.accuracy_test is not None
        found.append(outcome.accuracy_test)
    return found


def figures(name: str, task: Task, found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The JSON of a pair's speeds."""
    cached, online, alone = (statistics.median(found[way]) for way in WAYS)
    saved_s = 1 / online - 1 / cached  # an image
    passes = task.cache_s / len(task.data["cached"].train) / saved_s if saved_s > 0 else math.inf
    return {
        f"{name}_cached_images_s": round(cached, 2),
        f"{name}_online_images_s": round(online, 2),
        f"{name}_no_teacher_images_s": round(alone, 2),
        f"{name}_ratio_online": round(cached / online, 3),
        f"{name}_ratio_no_teacher": round(cached / alone, 3),
        f"{name}_cache_s": round(task.cache_s, 3),
        f"{name}_cache_views_s": round(task.cache_rows / task.cache_s, 1),
        f"{name}_pays_off_after_passes": round(passes, 1) if math.isfinite(passes) else None,
    }
