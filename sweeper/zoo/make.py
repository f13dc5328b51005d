"""Trains the embedded weights again: `python -m sweeper.zoo.make [--only cnn|vit|generator] [--out DIR]`.

Every model is trained for a fixed number of steps from a fixed seed on the foundation pool, then judged on the task's
val and test splits, which choose nothing. Weights and `figures.json` are written beside this file.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from sweeper import zoo
from sweeper.datasets import digits
from sweeper.fingerprint import folder_sha256
from sweeper.generators import diffusers as generators
from sweeper.teachers import timm as teachers
from sweeper.zoo import _classifiers, _diffusion

SEED = 0
MODELS = ("cnn", "vit", "generator")
SAMPLING_STEPS = 12
NUM_JUDGED = 1000


@click.command()
@click.option("--only", type=click.Choice(MODELS), multiple=True, help="Train these only.")
@click.option("--out", type=click.Path(path_type=Path), default=zoo.ROOT, help="Where the folders go.")
def main(only: Sequence[str], out: Path) -> None:
    """Train the embedded weights and record how good they are."""
    torch.set_num_threads(1)
    for name in only or MODELS:
        started = time.perf_counter()
        if name == "generator":
            _diffusion.save(_diffusion.train(SEED), out / name)
        else:
            _classifiers.save(_classifiers.train(name, SEED), name, out / name)
        seconds = time.perf_counter() - started
        figures = judge_generator(out) if name == "generator" else judge_teacher(out / name)
        record(out, name, {"train_seconds": round(seconds), **provenance(out / name), **figures})


def judge_teacher(folder: Path) -> dict[str, Any]:
    """Accuracy on the task's val and test images, whole and as the sweep's crops, of the weights as they are stored."""
    teacher = teachers.build(teachers.Config(weights=str(folder), adapt="none"), digits.CLASS_NAMES)
    figures: dict[str, Any] = {"params": sum(parameter.numel() for parameter in teacher.parameters())}
    for split in ("val", "test"):
        images, labels = task_images(split)
        pixels_NCHW = _classifiers.to_tensor(images)
        crops_NCHW = _classifiers.crop(pixels_NCHW, SEED, 0)
        for view, batch in (("", pixels_NCHW.float() / 255), ("_crops", crops_NCHW)):
            with torch.no_grad():
                logits_NK = teacher(batch).logits_BK
            assert logits_NK is not None
            figures[f"accuracy_{split}{view}"] = round(float((logits_NK.argmax(1).numpy() == labels).mean()), 4)
    return figures


def judge_generator(out: Path) -> dict[str, Any]:
    """Does an image show the class that was asked for, and is it new?

    `agreement_*`: share that a teacher of the zoo reads as the class asked for. `nearest_*`: median distance in grey
    levels (root mean square over the pixels) to the nearest foundation image of any class, of the generated images and,
    for scale, of the task's real ones; `copies`: share of images closer than the closest 1% of real ones.
    """
    config = generators.Config(model=str(out / "generator"), steps=SAMPLING_STEPS)
    generator = generators.build(config, "cpu")
    labels = np.arange(NUM_JUDGED) % len(digits.CLASS_NAMES)
    started = time.perf_counter()
    drawn = generator.generate(labels.tolist(), digits.CLASS_NAMES, list(range(NUM_JUDGED)))
    seconds = time.perf_counter() - started
    figures: dict[str, Any] = {
        "params": sum(parameter.numel() for parameter in generator.pipeline.unet.parameters()),
        "sampling_steps": SAMPLING_STEPS,
        "images_per_second": round(NUM_JUDGED / seconds),
    }
    for name in ("cnn", "vit"):
        if (out / name).is_dir():
            teacher = teachers.build(teachers.Config(weights=str(out / name), adapt="none"), digits.CLASS_NAMES)
            with torch.no_grad():
                logits_NK = teacher(_classifiers.to_tensor(drawn).float() / 255).logits_BK
            assert logits_NK is not None
            figures[f"agreement_{name}"] = round(float((logits_NK.argmax(1).numpy() == labels).mean()), 4)
    real, _ = task_images("test")
    near, near_real = nearest(drawn), nearest(real)
    return figures | {
        "nearest_generated": round(float(np.median(near)), 1),
        "nearest_real": round(float(np.median(near_real)), 1),
        "copies": round(float((near < np.quantile(near_real, 0.01)).mean()), 4),
    }


def nearest(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Root-mean-square distance of each image to its nearest foundation image, in grey levels."""
    pool, _ = digits.foundation()
    flat, known = (torch.from_numpy(part.mean(-1).reshape(len(part), -1)) for part in (images, pool))
    distances: npt.NDArray[np.float64] = (torch.cdist(flat, known).amin(1) / flat.shape[1] ** 0.5).numpy()
    return distances


def task_images(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """uint8 [N, 8, 8, 3] images and labels of the task's val or test split."""
    config = digits.Config()
    index = digits.index(config, SEED)
    rows = [i for i, name in enumerate(index.splits) if name == split]
    images = digits.decode(config, [index.sources[i] for i in rows])
    return np.stack([np.asarray(image) for image in images]), index.labels[rows]


def provenance(folder: Path) -> dict[str, Any]:
    """Seed, data, bytes and versions: what one needs to know to make the folder again."""
    return {
        "seed": SEED,
        "data": "foundation pool of sweeper.datasets.digits (1000 images)",
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "folder_sha256": folder_sha256(folder),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "diffusers", "scikit-learn", "numpy")},
    }


def record(out: Path, name: str, figures: dict[str, Any]) -> None:
    """Put one model's figures into figures.json, leaving those of the others."""
    path = out / "figures.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = figures
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    click.echo(json.dumps({name: figures}))


if __name__ == "__main__":
    main()
