"""The linear probe of a teacher against scikit-learn's logistic regression over the same penalties.

    python benchmarks/probe.py [--samples 10000] [--width 512] [--classes 100] [--device cpu]

Both standardise, try the six penalties of `sweeper.probe` and keep the one with the least cross-entropy on validation:
`sweeper.probe` along a path on the device, scikit-learn one fit after the other, as it is usually done. Embeddings are
made up: a rectified linear map of classes and noise whose variance falls off like that of real ones, so that classes
overlap; `cnn` and `vit` are those of the teachers of `search_spaces/datalimited.yaml`. Seconds are the process's own on
a CPU, whatever else the machine does, and on the clock with a GPU. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from teacher_pairs import digit_images
from torch import Tensor
from torch.nn import functional as F

from sweeper import adapt, probe, registry

NUM_VAL = 2000
SIGNAL, NOISE = 0.45, 1.5  # about three quarters right, as a good backbone on a hard task
EMBEDDED = ("cnn", "vit")
EMBEDDED_SIZE = 32


@dataclass(frozen=True)
class Task:
    """Embeddings and labels, to fit on and to choose by."""

    train_ND: Tensor
    labels_N: Tensor
    val_MD: Tensor
    val_labels_M: Tensor


@dataclass(frozen=True)
class Found:
    """A probe: its probabilities on validation, and what it took."""

    probabilities_MK: Tensor
    loss: float
    accuracy: float
    seconds: float


def made_up(num: int, width: int, num_classes: int) -> Task:
    rng = np.random.default_rng(0)
    spread_D = 1 / np.sqrt(1 + np.arange(width))
    rotation_DD = np.linalg.qr(rng.normal(size=(width, width)))[0]
    centres_KD = SIGNAL * rng.normal(size=(num_classes, width)) * spread_D
    labels = np.arange(num + NUM_VAL) % num_classes
    noise = NOISE * rng.normal(size=(len(labels), width)) * spread_D
    features = np.maximum(8 * (centres_KD[labels] + noise) @ rotation_DD + 0.2, 0)
    all_ND, all_N = torch.from_numpy(features).float(), torch.from_numpy(labels)
    return Task(all_ND[:num], all_N[:num], all_ND[num:], all_N[num:])


def embedded(name: str) -> Task:
    kind = registry.load("teachers", "timm")
    splits = digit_images(EMBEDDED_SIZE)
    (_, train), (_, val) = splits["train"], splits["val"]
    teacher = kind.build(kind.Config(weights=f"zoo:{name}"), tuple("0123456789"))
    (train_ND, _), (val_MD, _) = (adapt.embed(teacher, part, torch.device("cpu")) for part in (train, val))
    return Task(train_ND, train.labels_B, val_MD, val.labels_B)


def judged(logits_MK: Tensor, task: Task, seconds: float) -> Found:
    loss = float(F.cross_entropy(logits_MK, task.val_labels_M))
    accuracy = float((logits_MK.argmax(dim=1) == task.val_labels_M).float().mean())
    return Found(logits_MK.softmax(dim=1), loss, accuracy, seconds)


def by_path(task: Task, device: torch.device) -> Found:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    head = probe.fit(task.train_ND, task.labels_N, task.val_MD, task.val_labels_M, device=device)
    seconds = clock() - started
    return judged(head(task.val_MD), task, seconds)


def by_scikit_learn(task: Task) -> Found:
    started = time.process_time()
    mean_D, std_D = task.train_ND.mean(dim=0), task.train_ND.std(dim=0) + 1e-6
    train_ND, val_MD = (((part - mean_D) / std_D).numpy() for part in (task.train_ND, task.val_MD))
    logits = []
    for penalty in probe.PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=500).fit(train_ND, task.labels_N.numpy())
        logits.append(torch.from_numpy(fitted.decision_function(val_MD)).float())
    seconds = time.process_time() - started
    return min((judged(one, task, seconds) for one in logits), key=lambda found: found.loss)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    tasks = {name: embedded(name) for name in EMBEDDED}
    tasks["made_up"] = made_up(given.samples, given.width, given.classes)
    print(f"made_up: {given.samples:,} embeddings of width {given.width}, {given.classes} classes; path on {device}")
    print(f"{'':<10}{'':<14}{'accuracy':>10}{'loss':>10}{'seconds':>10}")
    figures: dict[str, float] = {}
    for name, task in tasks.items():
        path, other = by_path(task, device), by_scikit_learn(task)
        for way, found in (("path", path), ("scikit-learn", other)):
            print(f"{name:<10}{way:<14}{found.accuracy:>10.4f}{found.loss:>10.4f}{found.seconds:>10.2f}")
        same = (path.probabilities_MK.argmax(dim=1) == other.probabilities_MK.argmax(dim=1)).float().mean()
        figures |= {
            f"{name}_accuracy": round(path.accuracy, 4),
            f"{name}_accuracy_sklearn": round(other.accuracy, 4),
            f"{name}_loss": round(path.loss, 4),
            f"{name}_loss_sklearn": round(other.loss, 4),
            f"{name}_agreement": round(float(same), 4),
            f"{name}_seconds": round(path.seconds, 3),
            f"{name}_speedup": round(other.seconds / path.seconds, 2),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
