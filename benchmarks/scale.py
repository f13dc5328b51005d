"""What the driver needs per report and per proposal while a search grows to 10,000 trials on 256 lanes.

    OMP_NUM_THREADS=1 python benchmarks/scale.py
    OMP_NUM_THREADS=1 python benchmarks/scale.py --sampler random

The lanes are `replay`'s, the curves a closed form of the configuration; searcher, study, journal and scheduler are
those of a run (`rivals.Sweeper`). A line of the table is a block of 1,000 trials: milliseconds of the driver for a
proposal, for the report of an epoch (searcher and scheduler) and for a trial's end (its outcome into the journal, the
sampler told), what share of the clock that is where an epoch takes `--epoch-s` seconds, and the most memory that the
process has held. `growth` is the last block's time of a call over the first's: 1 means that the whole search's driver
time grows in proportion to its trials, 10 for ten times as many trials that it grows with their square. `--limit-s`
ends a sampler that gets too slow. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rivals
from replay import Curve, Key, Lanes, Method, Timed

from sweeper.space import Space

EPOCHS = 15
CALLS = ("propose", "report", "end")
TREE: dict[str, Any] = {
    "teacher": {"choice": ["none", "cnn", "vit"]},
    "student": {"model": {"choice": ["test_resnet", "test_efficientnet", "test_vit"]}},
    "synthetic": {"source": "ddpm", "ratio": {"choice": [0, 1, 2, 5]}},
    "loss": {
        "kl": {
            "weight": {"uniform": [0.1, 3], "when": {"teacher": ["cnn", "vit"]}},
            "temperature": {"loguniform": [1, 8], "when": {"teacher": ["cnn", "vit"]}},
        },
        "embedding": {
            "kind": {"choice": ["none", "sp", "info_nce"], "when": {"teacher": ["cnn", "vit"]}},
            "weight": {"loguniform": [0.1, 3], "when": {"loss.embedding.kind": ["sp", "info_nce"]}},
        },
    },
    "train": {"epochs": EPOCHS, "lr": {"loguniform": [1e-4, 1e-1]}, "weight_decay": {"loguniform": [1e-4, 1e-1]}},
}
STUDENTS = {"test_resnet": (0.10, 1.0), "test_efficientnet": (0.15, 1.6), "test_vit": (0.05, 0.8)}  # accuracy, pace


def made_up(key: Key, epoch_s: float) -> Curve:
    """Accuracy that rises to what the configuration is worth, with a little noise of its own; costs by the student."""
    values: dict[str, Any] = dict(key)
    best, pace = STUDENTS[values["student.model"]]
    best += 0.4 + 0.02 * values["synthetic.ratio"] + 0.1 * ("teacher" in values)
    best -= 0.05 * abs(math.log(values["train.lr"] / 3e-3)) + 0.02 * abs(math.log(values["train.weight_decay"] / 1e-2))
    noise = np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()))
    epochs_E = np.arange(1, EPOCHS + 1)
    accuracy_E = np.clip(best, 0.1, 1) * (1 - 0.7**epochs_E) + noise.normal(scale=0.01, size=EPOCHS)
    pace *= epoch_s * noise.uniform(0.9, 1.1)
    shared = {("adapt", "teacher"): 10.0, ("targets", "teacher"): 20.0} if "teacher" in values else {}
    return Curve(accuracy_E.astype(float), pace * epochs_E.astype(float), EPOCHS, shared)


class TooSlow(Exception):
    """The time limit was reached."""


class Blocks(Timed):
    """A stopwatch that closes a block every so many proposals: how many calls there were, and the memory until then."""

    def __init__(self, method: Method, size: int, limit_s: float) -> None:
        super().__init__(method)
        self.size, self.until = size, time.perf_counter() + limit_s
        self.counts: list[dict[str, int]] = []
        self.memory_mb: list[float] = []
        self.clock_s: list[float] = [0.0]

    def propose(self, now: float) -> tuple[str, Key] | None:
        if time.perf_counter() > self.until:
            raise TooSlow
        found = super().propose(now)
        if len(self.seconds["propose"]) % self.size == 0:
            self.close(now)
        return found

    def close(self, now: float) -> None:
        self.counts.append({name: len(self.seconds[name]) for name in CALLS})
        self.memory_mb.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        self.clock_s.append(now)

    def rows(self) -> list[dict[str, float]]:
        """A block each: milliseconds a call, the share of the clock, memory in MB."""
        found, before = [], dict.fromkeys(CALLS, 0)
        for number, after in enumerate(self.counts):
            parts = {name: self.seconds[name][before[name] : after[name]] for name in CALLS}
            row = {f"{name}_ms": 1000 * sum(part) / max(1, len(part)) for name, part in parts.items()}
            clock_s = self.clock_s[number + 1] - self.clock_s[number]
            row["busy"] = sum(sum(part) for part in parts.values()) / clock_s if clock_s else math.nan
            found.append(row | {"trials": after["propose"], "memory_mb": self.memory_mb[number]})
            before = after
        return found


def table(rows: Sequence[dict[str, float]]) -> str:
    lines = [f"{'trials':>8}{'proposal':>12}{'report':>12}{'end':>12}{'of the clock':>14}{'memory':>12}"]
    for row in rows:
        times = "".join(f"{row[f'{name}_ms']:>9.2f} ms" for name in CALLS)
        lines.append(f"{row['trials']:>8.0f}{times}{row['busy']:>13.1%}{row['memory_mb']:>9.0f} MB")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lanes", type=int, default=256)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--block", type=int, default=1_000, help="trials of a line")
    parser.add_argument("--sampler", default="tpe", help="as in `search.sampler`")
    parser.add_argument("--epoch-s", type=float, default=60.0, help="virtual seconds of an epoch")
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    curves: dict[Key, Curve] = {}

    def look_up(key: Key) -> Curve:
        if key not in curves:
            curves[key] = made_up(key, options.epoch_s)
        return curves[key]

    task = rivals.Task(Space(TREE), look_up, EPOCHS, 0, {"sampler": options.sampler})
    watch = Blocks(rivals.Sweeper(task), options.block, options.limit_s)
    lanes = Lanes(watch, look_up, options.lanes)
    begun = time.perf_counter()
    complete = True
    try:
        lanes.run(trials=options.trials)
    except TooSlow:
        complete = False
    rows = watch.rows()
    if not options.json_only:
        print(f"{options.lanes} lanes, {options.trials} trials, sampler {options.sampler}, mo_asha")
        print(table(rows))
        if not complete:
            print(f"stopped after {options.limit_s:g} s with {len(watch.seconds['propose'])} trials")
    growth = {f"{name}_growth": round(rows[-1][f"{name}_ms"] / rows[0][f"{name}_ms"], 2) for name in CALLS if rows}
    last = {key: round(value, 4) for key, value in rows[-1].items()} if rows else {}
    print(
        json.dumps(
            {
                "sampler": options.sampler,
                "lanes": options.lanes,
                "complete": complete,
                **last,
                **growth,
                "trials": len(watch.seconds["propose"]),
                "reports": len(watch.seconds["report"]),
                "driver_s": round(watch.total(), 2),
                "wall_s": round(time.perf_counter() - begun, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
