"""What cached targets save: the same trial from a cache, with its teacher in the loop, and without a teacher.

    python benchmarks/cached_vs_online.py

Plain torch, no Ray. Every pair of teacher and student is trained three ways by `train.Trainer`, with equal seeds, views
and losses (cross-entropy, KL and `align_uniform`):

- **cached**: `sources.CachedTargets`, filled before; the cache pass is timed and shown apart;
- **online**: `sources.LiveTeacher`, the same teacher on the same views, in float32 as in the cache pass;
- **no teacher**: cross-entropy alone, the yardstick. Its views are fresh ones by the same law, which costs the same.

Images a second are those of whole rounds of `--steps` steps, the device synchronised before and after; the fastest of
`--repeats` rounds, since whatever else runs on a machine only ever makes a round slower. The rounds alternate (cached,
online, none, cached, ...). A first round of each does not count. `cache pays` is the number of passes over the images
after which the cache pass has cost less than the teacher in the loop would have; the next trial reads it for nothing.
The JSON has the medians over the rounds of the same ratios as well.

`embedded` is the task of `search_spaces/datalimited.yaml` and is trained to its end as well, cached and online, for the
difference in accuracy. The other two have random weights and made-up images at 224 px, where only the first losses
compare: `loss diff.` is the relative difference of the first step's, raw. The targets' fp16 is all that tells the two
ways apart there; what AdamW makes of a gradient's rounding grows with each step. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from teacher_pairs import PAIRS, SEED, Pair, Size, Task, prepare, seconds_now

from sweeper import cpu, train
from sweeper.batches import TrialData
from sweeper.ledger import device_name
from sweeper.trial import NO_TEACHER, TrialConfig

WAYS = ("cached", "online", "no_teacher")
FIRST_STEPS = 1
TERMS: dict[str, Any] = {
    "ce": 1.0,
    "kl": {"weight": 1.0, "temperature": 4.0},
    "embedding": {"kind": "align_uniform", "weight": 1.0},
}
# Of search_spaces/datalimited.yaml, as the whole training of the embedded pair.
RECIPE: dict[str, Any] = {"epochs": 15, "epoch_size": 640, "batch_size": 64, "lr": 3e-3, "weight_decay": 0.01}
NO_CHECKPOINTS: Any = SimpleNamespace(load=lambda: None, save=lambda state: None, is_urgent=lambda: False)


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


def test_accuracy(config: TrialConfig, data: TrialData, seed: int, device: torch.device) -> float:
    """Of a whole training."""
    outcome = train.fit(
        config,
        data,
        seed=seed,
        device=device,
        report=lambda _: True,
        slot=NO_CHECKPOINTS,
        with_test=True,
        keep_model=False,
    )
    assert outcome.accuracy_test is not None
    return outcome.accuracy_test


def figures(name: str, task: Task, found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The JSON of a pair's speeds."""
    cached, online, alone = (max(found[way]) for way in WAYS)
    saved_s = 1 / online - 1 / cached  # an image
    passes = task.cache_s / len(task.data["cached"].train) / saved_s if saved_s > 0 else math.inf
    return {
        f"{name}_cached_images_s": round(cached, 2),
        f"{name}_online_images_s": round(online, 2),
        f"{name}_no_teacher_images_s": round(alone, 2),
        f"{name}_ratio_online": round(cached / online, 3),
        f"{name}_ratio_no_teacher": round(cached / alone, 3),
        f"{name}_median_ratio_online": round(statistics.median(_ratios(found, "online")), 3),
        f"{name}_median_ratio_no_teacher": round(statistics.median(_ratios(found, "no_teacher")), 3),
        f"{name}_cache_s": round(task.cache_s, 3),
        f"{name}_pays_off_after_passes": round(passes, 1) if math.isfinite(passes) else None,
    }


def _ratios(found: Mapping[str, Sequence[float]], way: str) -> list[float]:
    """Of the rounds, each against the one beside it."""
    return [cached / other for cached, other in zip(found["cached"], found[way], strict=True)]


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures of a pair."""
    pair = PAIRS[name]
    size = pair.gpu if device.type == "cuda" else pair.cpu
    given = {"batch": options.batch_size, "steps": options.steps, "repeats": options.repeats}
    size = replace(size, **{key: value for key, value in given.items() if value is not None})
    task = prepare(pair, size.batch * size.batches, device)
    found = figures(name, task, speeds(pair, task, size, device, options.precision))
    found[f"{name}_loss_difference"] = loss_difference(pair, task, size, device)
    if pair.embedded:
        cached, online = (
            [
                test_accuracy(trial(pair, way, epochs=options.epochs), task.data[way], seed, device)
                for seed in range(options.seeds)
            ]
            for way in WAYS[:2]
        )
        found |= {
            "accuracy_cached": round(statistics.mean(cached), 4),
            "accuracy_online": round(statistics.mean(online), 4),
            "accuracy_difference": round(statistics.mean(cached) - statistics.mean(online), 4),
        }
    return found


def table(names: Sequence[str], found: Mapping[str, Any]) -> str:
    """A line a pair, for people."""
    lines = [
        f"{'':<10}{'images/s':>32}{'cached against':>21}{'cache':>10}{'loss':>10}",
        f"{'pair':<10}{'cached':>10}{'online':>10}{'no teacher':>12}{'online':>9}{'no teacher':>12}"
        f"{'pays':>10}{'diff.':>10}",
    ]
    for name in names:
        speed = [f"{found[f'{name}_{way}_images_s']:,.1f}" for way in WAYS]
        ratios = [found[f"{name}_ratio_{way}"] for way in WAYS[1:]]
        passes, loss = found[f"{name}_pays_off_after_passes"], found[f"{name}_loss_difference"]
        lines.append(
            f"{name:<10}{speed[0]:>10}{speed[1]:>10}{speed[2]:>12}{ratios[0]:>8.2f}x{ratios[1]:>11.3f}x"
            f"{passes or 'never':>10}{loss:>10.1e}"
        )
    if "accuracy_difference" in found:
        lines.append(
            f"test accuracy of the embedded pair: {found['accuracy_cached']:.3f} cached, "
            f"{found['accuracy_online']:.3f} online, difference {found['accuracy_difference']:+.4f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--steps", type=int, help="steps of a round")
    parser.add_argument("--repeats", type=int, help="rounds of each way")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="whole trainings of the embedded pair, each way")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"], help="of those")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the student")
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cpu":
        cpu.prepare(threads=1)
    found: dict[str, Any] = {"device": device_name(device)}
    for name in options.pairs:
        found |= measure(name, options, device)
    if not options.json_only:
        print(table(options.pairs, found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
