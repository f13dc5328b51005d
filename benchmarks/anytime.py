"""What it gains to take every epoch of every trial for a candidate, and what a schedule without an end costs for it.

    python benchmarks/anytime.py

The same configurations in the same random orders on 8 lanes, trained in two ways and counted in two ways each:

- **cosine**: half a cosine to 0, the last weights; **wsd + ema**: a constant rate with a straight line to 0 in the last
  fifth, and averaged weights;
- **final**: the student of a trial's end; **anytime**: that of each of its epochs.

Configurations are those of `curves/final200.parquet` (an even sample of the grid, cosine), which `anytime.parquet` has
too (wsd + ema). Both count with the device-seconds of the former, for they were recorded under different loads of the
machine; what averaging costs is measured apart (`benchmarks/README.md`). The hypervolume is that of accuracy and log
cost, above the least accuracy that a search retrains (`harvest.worth_retraining`) and below the dearest candidate; as a
share of what all candidates of both ways cover together. Device time as in `search.py`. The last line is JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from regret import Scale, interval
from replay import Grid, Key, Lanes, Report

from sweeper import spacefile

FOLDER = Path(__file__).parent / "curves"
FILES = {"cosine": "final200", "wsd + ema": "anytime"}
LANES = 8
ORDERS = 40
MARKS = (0.1, 0.25, 0.5, 1.0)


class Shuffled:
    """Every configuration once, in a random order, nobody stopped."""

    def __init__(self, keys: list[Key], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(keys))
        self.left = [(f"trial-{number}", keys[at]) for number, at in enumerate(order)]

    def propose(self, now: float) -> tuple[str, Key] | None:
        return self.left.pop(0) if self.left else None

    def report(self, report: Report) -> bool:
        return True

    def end(self, report: Report, state: str) -> None:
        """Nothing is learnt."""


def main() -> None:
    space = spacefile.load(FOLDER / "space.yaml").space
    grids = {way: Grid.read(FOLDER / f"{name}.parquet", space) for way, name in FILES.items()}
    common = sorted(set.intersection(*(set(grid.curves) for grid in grids.values())), key=repr)
    clock = grids["cosine"].curves
    grids = {
        way: Grid(
            space,
            {
                key: replace(grid.curves[key], seconds_E=clock[key].seconds_E, shared=clock[key].shared)
                for key in common
            },
        )
        for way, grid in grids.items()
    }
    scale = Scale.of(*(grid.points(True) for grid in grids.values()))
    budget = min(grid.device_seconds(1.0) for grid in grids.values())
    moments = np.array(MARKS) * budget
    print(f"{len(common)} configurations, {ORDERS} orders, {budget:,.0f} device-seconds; hypervolume found at")
    print(f"{'':<22}" + "".join(f"{f'{mark:.0%}':>16}" for mark in MARKS))
    figures: dict[str, float] = {}
    for way, grid in grids.items():
        logs = [Lanes(Shuffled(common, seed), grid, LANES).run() for seed in range(ORDERS)]
        for front in ("final", "anytime"):
            mean, half = interval(np.array([scale.shares(log, front == "anytime", moments) for log in logs]))
            print(
                f"{way + ', ' + front:<22}"
                + "".join(f"{f'{m:.4f} ±{h:.4f}':>16}" for m, h in zip(mean, half, strict=True))
            )
            slug = "_".join((way + " " + front).replace("+", " ").split())
            figures |= {f"{slug}_{mark:.0%}": round(float(m), 4) for mark, m in zip(MARKS, mean, strict=True)}
    for epoch in (3, 5, 10, 15):
        means = {way: np.mean([c.accuracy_E[epoch - 1] for c in grid.curves.values()]) for way, grid in grids.items()}
        print(f"mean accuracy after epoch {epoch}: " + ", ".join(f"{way} {value:.4f}" for way, value in means.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
