"""Trials per GPU-hour against lanes per GPU: what `resources: {gpus_per_trial: 0.25}` is worth.

    OMP_NUM_THREADS=1 python benchmarks/lanes_per_gpu.py --lanes 1 2 4 8

Needs a GPU (exit 2 without one; `--device cpu` runs the same code, but CPU processes share nothing worth measuring).
Plain torch, no Ray: a lane is a process, as it is under Ray, that trains one trial after another with `train.fit` on
random images and cached targets. All lanes of a round begin together, once every one of them has trained a first trial
that does not count, and take `--trials` each. A round's figure is all of their trials by the time from the common start
to the end of the last lane; a single GPU is held for exactly that time. The counts of lanes alternate over `--repeats`
rounds, figures are medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from loop import trial_data

from sweeper import train
from sweeper.ledger import device_name
from sweeper.trial import TrialConfig

EXIT_NO_GPU = 2
NO_CHECKPOINTS: Any = SimpleNamespace(load=lambda: None, save=lambda state: None, is_urgent=lambda: False)


def config(options: argparse.Namespace) -> TrialConfig:
    """The one trial that all lanes train."""
    return TrialConfig.model_validate(
        {
            "teacher": "t",
            "student": {"model": options.student},
            "loss": {"ce": 1.0, "kl": {"weight": 1.0}, "embedding": {"kind": "kdep"}},
            "train": {
                "epochs": 2,
                "epoch_size": options.steps * options.batch_size // 2,
                "batch_size": options.batch_size,
                "lr": 1e-3,
                "precision": options.precision,
            },
        }
    ).resolved()


def lane(number: int, options: argparse.Namespace, ready: Any, ended: Any) -> None:
    """A process: a first trial, then those that count, and the time at which it was done with them."""
    torch.set_num_threads(1)
    device, data = torch.device(options.device), trial_data(options.image_size)

    def trial(seed: int) -> None:
        train.fit(
            config(options),
            data,
            seed=seed,
            device=device,
            report=lambda _: True,
            slot=NO_CHECKPOINTS,
            keep_model=False,
        )

    trial(number)
    ready.wait()
    for seed in range(options.trials):
        trial(1000 * number + seed)
    ended.put(time.monotonic())  # one clock for all processes of a machine


def trials_per_hour(num_lanes: int, options: argparse.Namespace) -> float:
    """One round."""
    context = torch.multiprocessing.get_context("spawn")
    ready, ended = context.Barrier(num_lanes + 1), context.Queue()
    processes = [context.Process(target=lane, args=(n, options, ready, ended)) for n in range(num_lanes)]
    for process in processes:
        process.start()
    try:
        ready.wait(options.patience_s)
        started = time.monotonic()
        last = max(ended.get(timeout=options.patience_s) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return float(num_lanes * options.trials * 3600 / (last - started))


def figures(found: dict[int, list[float]]) -> dict[str, Any]:
    """The JSON: a figure and a gain over the fewest lanes for each count."""
    medians = {lanes: statistics.median(values) for lanes, values in found.items()}
    least = medians[min(medians)]
    rates = {f"trials_per_gpu_hour_{lanes}": round(value, 1) for lanes, value in medians.items()}
    return {**rates, **{f"gain_{lanes}": round(value / least, 2) for lanes, value in medians.items()}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--student", default="mobilenetv2_035")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=400, help="of a trial")
    parser.add_argument("--trials", type=int, default=3, help="of each lane in a round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--patience-s", type=float, default=600.0)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("lanes_per_gpu.py needs a GPU, and torch finds none here; nothing was measured", file=sys.stderr)
        return EXIT_NO_GPU
    found: dict[int, list[float]] = {lanes: [] for lanes in options.lanes}
    for _ in range(options.repeats):
        for lanes, values in found.items():
            values.append(trials_per_hour(lanes, options))
    told = figures(found)
    print(f"{'lanes per GPU':>14}{'trials per GPU-hour':>22}{'gain':>8}")
    for lanes in found:
        print(f"{lanes:>14}{told[f'trials_per_gpu_hour_{lanes}']:>22,.0f}{told[f'gain_{lanes}']:>7.2f}x")
    print(json.dumps({"device": device_name(torch.device(options.device)), "student": options.student, **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
