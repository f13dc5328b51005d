"""How busy the loop keeps the device: images a second of a trial against the same model on one constant batch.

    OMP_NUM_THREADS=1 python benchmarks/loop.py

Plain torch, no Ray. For each student the same images a second in three ways, all of them with the loop's own optimiser,
memory format and precision, and equal batches:

- **bound**: the student alone on one constant batch: forward, cross-entropy, backward, optimiser;
- **step**: the trial's own step on one constant batch, with its losses (cross-entropy, KL and `--embedding`), whose
  projectors are trained too, and everything else that `train.Trainer` does in an epoch;
- **loop**: `train.Trainer.run_epoch` as it is: batches from cached targets, gathered, cropped and flipped.

`fed` = loop / step is what feeding leaves of the device, and what is expected to be 95% or more; `share` = loop / bound
also counts the work of the losses, which is no idle time. Images are random, for speed does not depend on them.

`--compile` measures the bound alone, as it is and through `torch.compile`, and after how many images the seconds of the
first round, in which it is compiled, are won back.

The ways alternate in rounds of `--steps` steps; figures are medians over `--repeats` rounds, a first round of each does
not count. On a CPU, with one thread, the clock is the process's own CPU time: what else runs on the machine takes part
of the time, but is not counted; on a GPU it is the wall's, the device synchronised. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sweeper import cpu, student, train, views
from sweeper.batches import ImageSplit, TrialData
from sweeper.ledger import device_name
from sweeper.sources import CachedTargets
from sweeper.trial import TrialConfig
from sweeper.views import ViewConfig

STUDENTS = (
    "test_resnet:32",
    "test_efficientnet:32",
    "test_vit:32",
    "mobilenetv2_035:32",
    "mobilenetv3_small_050:32",
    "resnet10t:32",
    "mobilenetv2_035:64",
)
WAYS = ("bound", "step", "loop")
NUM_IMAGES, NUM_CLASSES, TEACHER_WIDTH, SEED = 1024, 10, 512, 0
VIEWS = ViewConfig(per_image=8, flip=True)


def trial_data(size: int) -> TrialData:
    """Random images, and as random targets of all of their views."""
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 3, size, size), dtype=np.uint8)
    images = ImageSplit(torch.from_numpy(pixels), torch.arange(NUM_IMAGES) % NUM_CLASSES)
    keys_N = np.array([views.sample_key(f"train/{i}") for i in range(NUM_IMAGES)], dtype=np.uint64)
    numbers_NV = np.tile(np.arange(VIEWS.per_image), (NUM_IMAGES, 1))
    widths = {"logits": NUM_CLASSES, "embedding": TEACHER_WIDTH, "pre_embedding": TEACHER_WIDTH}
    shape = (NUM_IMAGES, VIEWS.per_image)
    source = CachedTargets(
        keys_N=keys_N,
        views_NVP=views.draw_views(VIEWS, SEED, keys_N, numbers_NV),
        columns={name: torch.from_numpy(rng.normal(size=(*shape, w))).half() for name, w in widths.items()},
        classifiers=((torch.zeros(NUM_CLASSES, TEACHER_WIDTH), torch.zeros(NUM_CLASSES)),),
        widths=(TEACHER_WIDTH,),
    )
    return TrialData(
        train=images,
        keys_N=keys_N,
        num_real=NUM_IMAGES,
        source=source,
        val=ImageSplit(images.images_BCHW[:1], images.labels_B[:1]),
        test=None,
        class_names=tuple(map(str, range(NUM_CLASSES))),
        image_size=size,
        views=VIEWS,
        view_seed=SEED,
    )


def trainer(model: str, data: TrialData, options: argparse.Namespace, device: torch.device) -> train.Trainer:
    """The trial before its first step; its epochs are the rounds."""
    embedding = {} if options.embedding == "none" else {"embedding": {"kind": options.embedding}}
    config = TrialConfig.model_validate(
        {
            "teacher": "t",
            "student": {"model": model},
            "loss": {"ce": 1.0, "kl": {"weight": 1.0}, **embedding},
            "train": {
                "epochs": 1000,
                "epoch_size": options.steps * options.batch_size,
                "batch_size": options.batch_size,
                "schedule": "constant",
                "warmup": 0.0,
                "lr": 1e-4,
                "precision": options.precision,
            },
        }
    ).resolved()
    assert isinstance(data.source, CachedTargets)
    columns = {name: column for name, column in data.source.columns.items() if name in config.needs}  # as a lane reads
    data = replace(data, source=replace(data.source, columns=columns))
    return train.Trainer(config, data, seed=SEED, device=device, world=train.World())


def bound(running: train.Trainer, batch: Any, steps: int, *, with_compile: bool = False) -> Callable[[], None]:
    """A round of the student alone, another one of the same kind, on the images of the batch."""
    recipe, device = running.config.train, running.device
    alone = student.build(running.config.student, NUM_CLASSES, running.data.image_size, SEED).to(device)
    alone = alone.to(memory_format=train.memory_format(device, recipe.precision))
    optimizer = train.optimizer(alone.parameters(), recipe)
    if with_compile:
        alone.compile()

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = F.cross_entropy(alone(batch.images_BCHW).logits_BK.float(), batch.labels_B)
            torch.autograd.backward(loss)
            optimizer.step()

    return run


def compiled(
    model: str, data: TrialData, options: argparse.Namespace, device: torch.device
) -> tuple[float, float, float]:
    """Images a second of the bound as it is and through `torch.compile`, and what its first round takes, in seconds."""
    running = trainer(model, data, options, device)
    batch = running.stream.batch(0)
    plain, faster = (bound(running, batch, options.steps, with_compile=each) for each in (False, True))
    started = time.perf_counter()  # compilers are processes of their own
    faster()
    first = time.perf_counter() - started
    found = alternating({"plain": plain, "faster": faster}, options, device)
    return statistics.median(found["plain"]), statistics.median(found["faster"]), first


def rounds(model: str, data: TrialData, options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Images a second of each way, a figure a round."""
    running = trainer(model, data, options, device)
    stream = running.stream
    batch = stream.batch(0)
    constant: Any = SimpleNamespace(device=device, batch_size=options.batch_size, batch=lambda *_: batch)

    def step() -> None:
        running.gradient.stream = constant
        running.run_epoch()

    def loop() -> None:
        running.gradient.stream = stream
        running.run_epoch()

    return alternating({"bound": bound(running, batch, options.steps), "step": step, "loop": loop}, options, device)


def alternating(
    ways: Mapping[str, Callable[[], None]], options: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Images a second of each way, a figure a round; a first round of each does not count."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.repeats + 1):
        for way, run in ways.items():
            started = seconds_now(device)
            run()
            seconds = seconds_now(device) - started
            if number:
                found[way].append(options.steps * options.batch_size / seconds)
    return found


def seconds_now(device: torch.device) -> float:
    """The clock of the figures."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def figures(name: str, found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The JSON of a student. Shares are medians over rounds of a round against the ones beside it."""

    def share(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)), 3)

    speeds = {f"{name}_{way}_images_s": round(statistics.median(found[way]), 1) for way in WAYS}
    return {**speeds, f"{name}_fed": share("loop", "step"), f"{name}_share": share("loop", "bound")}


def line(name: str, found: Mapping[str, float]) -> str:
    """A row of the table."""
    speeds = "".join(f"{found[f'{name}_{way}_images_s']:>10,.0f}" for way in WAYS)
    return f"{name:<24}{speeds}{found[f'{name}_fed']:>8.1%}{found[f'{name}_share']:>8.1%}"


def show_compiled(options: argparse.Namespace, device: torch.device) -> None:
    """The table and the JSON of `--compile`."""
    print(f"{'images/s':<24}{'bound':>10}{'compiled':>10}{'ratio':>8}{'first round':>13}{'won back after':>20}")
    said: dict[str, Any] = {"device": device_name(device)}
    for name in options.students:
        model, _, size = name.partition(":")
        plain, faster, first = compiled(model, trial_data(int(size)), options, device)
        images = first / (1 / plain - 1 / faster) if faster > plain else float("inf")
        print(f"{name:<24}{plain:>10,.0f}{faster:>10,.0f}{faster / plain:>8.2f}{first:>11.1f} s{images:>13,.0f} images")
        said |= {f"{model}_{size}_{key}": round(v, 3) for key, v in (("ratio", faster / plain), ("first_s", first))}
    print(json.dumps(said))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), metavar="MODEL:SIZE")
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each way")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--embedding", default="kdep", help="kind of the embedding loss, or none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile instead")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    cpu.prepare(threads=1)
    if options.compile:
        show_compiled(options, device)
        return
    print(f"{'images/s':<24}" + "".join(f"{way:>10}" for way in WAYS) + f"{'fed':>8}{'share':>8}")
    found: dict[str, Any] = {"device": device_name(device), "embedding": options.embedding}
    for name in options.students:
        model, _, size = name.partition(":")
        key = f"{model}_{size}"
        found |= figures(key, rounds(model, trial_data(int(size)), options, device))
        print(line(key, found), flush=True)
    found["least_fed"] = min(value for name, value in found.items() if name.endswith("_fed"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
