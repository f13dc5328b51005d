"""Which search finds the front with the least device time: sweeper's and its rivals on recorded learning curves.

    python benchmarks/search.py            # about ten minutes on two cores; writes benchmarks/curves/regret.png
    python benchmarks/search.py --choose   # a handful of sweeper's settings, on the other half of the seeds

`replay` says what is real in it and what time it counts, `rivals` who takes part. Of 20 seeds the even ones may choose
sweeper's defaults (`--choose`), the odd ones report.

**Score.** The hypervolume of accuracy and the log of the cost, as a share of what the whole grid's front has. The cost
is what a configuration alone would cost, shared artifacts included. The reference point is the highest cost in the grid
and the least accuracy that a search would retrain (`harvest.worth_retraining`, by the grid's best): below that lie the
cheap students that nobody wants. *Regret* is one less that share: 0 once the whole front is found.

**Candidates.** Two tables. `final`: the students of completed trials. `anytime`: the student of every epoch of every
trial, stopped ones too; it stands on curves recorded with a schedule that does not need its end and with averaged
weights (`anytime.parquet`), for otherwise an early epoch's student is not worth having. All methods are counted alike.

**Budget.** What random search without repetition needs for a quarter of the grid: a quarter of the grid's training and
all shared artifacts. Beyond that every search on a grid nears its whole, and there is nothing left to tell apart.

`x random` is random search's time to its final hypervolume, which is the budget, over the time in which the mean of a
method first reaches that; random search takes ten times as many seeds as the others. Intervals are 95%: of the mean
over seeds by Student's t, of the ratio by bootstrap over seeds. The last line is JSON; its `regret_*` are at the whole
budget.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rivals
from regret import MOMENTS, Scale, figure, interval, speedup, speedup_interval
from replay import COMPLETED, Grid, Lanes, Log, Timed

from sweeper import spacefile

FOLDER = Path(__file__).parent / "curves"
FRONTS = ("final", "anytime")
MARKS = (0.1, 0.25, 0.5, 1.0)  # shares of the budget in the table
QUARTER = 0.25
RANDOM_SEEDS = 10  # random search, whose end is the yardstick, takes so many times as many seeds: it costs nothing
# What `--choose` tries, each against the defaults: `search:` of sweeper, `scheduler` on top of mo_asha.
CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "spread crowding": {"scheduler": {"spread": "crowding"}},
    "grace 0.1": {"scheduler": {"grace": 0.1}},
    "grace 0.25": {"scheduler": {"grace": 0.25}},
    "reduction 2": {"scheduler": {"reduction": 2}},
    "reduction 3": {"scheduler": {"reduction": 3}},
    "keep 0": {"scheduler": {"keep": 0.0}},
    "nobody stopped": {"scheduler": {"kind": "fifo"}},
    "startup 0": {"startup": 0},
    "startup 32": {"startup": 32},
    "sampler random": {"sampler": "random"},
    "sampler nsga2": {"sampler": "nsga2"},
}


@dataclass(frozen=True)
class Job:
    """One replay, whose row in the table is `label`; `front` is what sweeper itself takes for candidates."""

    label: str
    method: str
    seed: int
    curves: str
    front: str
    folder: str
    lanes: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Played:
    """A replay's log and the driver's seconds in it."""

    job: Job
    log: Log
    driver_s: float


@functools.cache
def grid(folder: str, name: str) -> Grid:
    """Recorded curves, read once a process."""
    space = spacefile.load(FOLDER / "space.yaml").space
    return Grid.read(Path(folder) / f"{name}.parquet", space)


def play(job: Job) -> Played:
    """Replay one search until the budget is spent."""
    curves = grid(job.folder, job.curves)
    settings = {"front": job.front, **job.settings}
    scheduler = {"kind": "mo_asha", **settings.pop("scheduler", {})}
    task = rivals.Task(curves.space, curves, curves.epochs, job.seed, {**settings, "scheduler": scheduler})
    method = Timed(rivals.METHODS[job.method](task))
    log = Lanes(method, curves, job.lanes).run(budget=curves.device_seconds(QUARTER))
    return Played(job, log, method.total())


def play_all(jobs: Sequence[Job], workers: int) -> list[Played]:
    """All replays, two at a time; the slow ones first, so that no process is left with one at the end."""
    slow = {rivals.SWEEPER: 0, "asha + tpe": 1, "optuna tpe": 2}
    ordered = sorted(jobs, key=lambda job: slow.get(job.method, 3))
    if workers == 1:
        return [play(job) for job in ordered]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(play, ordered))


def summary(played: Sequence[Played], names: Sequence[str], curves: Grid, anytime: bool) -> dict[str, dict[str, Any]]:
    """The figures of a table, by the name of the method (or of its settings)."""
    scale, budget = Scale.of(curves.points(anytime)), curves.device_seconds(QUARTER)
    shares = {
        name: np.array([scale.shares(p.log, anytime, MOMENTS * budget) for p in played if p.job.label == name])
        for name in names
    }
    baseline = shares.get(rivals.RANDOM, shares[names[0]])
    found = {}
    for name in names:
        mean, half = interval(1 - shares[name])
        own = [p for p in played if p.job.label == name]
        trials = [sum(p.log.states.values()) for p in own]
        marks = [int(np.searchsorted(MOMENTS, mark - 1e-9)) for mark in MARKS]
        found[name] = {
            "speedup": speedup(shares[name], baseline),
            "speedup_interval": speedup_interval(shares[name], baseline),
            "regret": [float(mean[at]) for at in marks],
            "half": [float(half[at]) for at in marks],
            "trials": float(np.mean(trials)),
            "completed": float(np.mean([p.log.states[COMPLETED] for p in own])),
            "repeats": float(np.mean([p.log.repeats for p in own])),
            "driver_ms": 1000 * sum(p.driver_s for p in own) / max(1, sum(trials)),
            "mean": mean,
            "band": half,
        }
    return found


def table(title: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a method, for people."""
    marks = "".join(f"{f'{mark:.0%}':>15}" for mark in MARKS)
    lines = [
        title,
        f"{'':<28}{'x random':>8}{'(95%)':>13}{marks}{'trials':>8}{'whole':>7}{'again':>7}{'ms/trial':>9}",
    ]
    for name, row in found.items():
        ratio = "never" if row["speedup"] is None else f"{row['speedup']:.2f}"
        low, high = row["speedup_interval"]
        regrets = "".join(
            f"{f'{mean:.4f} ±{half:.4f}':>15}" for mean, half in zip(row["regret"], row["half"], strict=True)
        )
        lines.append(
            f"{name:<28}{ratio:>8}{f'{low:.2f}-{high:.2f}':>13}{regrets}"
            f"{row['trials']:>8.0f}{row['completed']:>7.0f}{row['repeats']:>7.0f}{row['driver_ms']:>9.1f}"
        )
    return "\n".join(lines)


def gain(played: Sequence[Played], folder: str) -> dict[str, float]:
    """What anytime candidates are worth: sweeper's mean share, of one whole for all, after the same device time."""
    own = [p for p in played if p.job.label == rivals.SWEEPER]
    ways = {(p.job.curves, p.job.front) for p in own}
    curves = {name: grid(folder, name) for name, _ in ways}
    scale = Scale.of(*(curves[name].points(front == "anytime") for name, front in sorted(ways)))
    budget = min(found.device_seconds(QUARTER) for found in curves.values())
    found = {}
    for name, front in sorted(ways):
        logs = [p.log for p in own if (p.job.curves, p.job.front) == (name, front)]
        shares = np.array([scale.shares(log, front == "anytime", MOMENTS * budget) for log in logs])
        for mark in MARKS:
            at = int(np.searchsorted(MOMENTS, mark - 1e-9))
            found[f"{name} curves, {front} candidates, {mark:.0%}"] = round(float(shares[:, at].mean()), 4)
    return found


def jobs_of(options: argparse.Namespace, ways: Sequence[tuple[str, str]]) -> list[Job]:
    """Every replay that is asked for."""
    seeds = [seed for seed in range(options.seeds) if seed % 2 == (0 if options.choose else 1)]
    rows: list[tuple[str, str, Mapping[str, Any]]]
    if options.choose:
        rows = [(rivals.RANDOM, rivals.RANDOM, {}), *((name, rivals.SWEEPER, own) for name, own in CHOICES.items())]
    else:
        rows = [(name, name, {}) for name in options.methods]
    found = [
        Job(name, method, seed, curves, front, options.folder, options.lanes, settings)
        for curves, front in ways
        for name, method, settings in rows
        for seed in (seeds if method != rivals.RANDOM else range(seeds[0], RANDOM_SEEDS * options.seeds, 2))
    ]
    if not options.choose and ("anytime", "anytime") in ways and rivals.SWEEPER in options.methods:
        # not in a table: what the other schedule costs where only its end counts
        more = ("anytime", "final", options.folder, options.lanes)
        found += [Job(rivals.SWEEPER, rivals.SWEEPER, seed, *more) for seed in seeds]
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--choose", action="store_true", help="try sweeper's settings on the even seeds")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=tuple(rivals.METHODS), metavar="METHOD")
    parser.add_argument("--fronts", nargs="+", choices=FRONTS, default=list(FRONTS))
    parser.add_argument("--folder", default=str(FOLDER), help="where the curves lie")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=FOLDER / "regret.png")
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    present = rivals.available()
    options.methods = [name for name in options.methods or rivals.METHODS if name in present]
    options.missing = [name for name in rivals.METHODS if name not in present]
    options.recorded = [name for name in FRONTS if (Path(options.folder) / f"{name}.parquet").exists()]
    if not options.recorded:
        parser.error(f"no curves in {options.folder}; record some with benchmarks/record_curves.py")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)

    def say(text: str) -> None:
        if not options.json_only:
            print(text, flush=True)

    if options.missing:
        say(f"syne-tune is not installed (`pip install -e .[benchmarks]`); without {', '.join(options.missing)}")
    begun = time.perf_counter()
    ways = [(front if front in options.recorded else options.recorded[0], front) for front in options.fronts]
    jobs = jobs_of(options, ways)
    say(f"{len(jobs)} replays with {options.lanes} lanes")
    played = play_all(jobs, options.workers)
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for curves, front in ways:
        own = [p for p in played if (p.job.curves, p.job.front) == (curves, front)]
        names = list(dict.fromkeys(job.label for job in jobs if (job.curves, job.front) == (curves, front)))
        seconds = grid(options.folder, curves).device_seconds(QUARTER)
        title = f"{front} candidates, {curves}.parquet"
        tables[title] = summary(own, names, grid(options.folder, curves), front == "anytime")
        say(f"\n{table(f'{title}: budget {seconds:,.0f} device-seconds; regret at', tables[title])}")
    figures: dict[str, Any] = {"lanes": options.lanes, "seeds": options.seeds // 2}
    first = next(iter(tables.values()))
    best = rivals.SWEEPER if rivals.SWEEPER in first else next(iter(first))
    figures["speedup_over_random"] = first[best]["speedup"]
    figures |= {f"regret_{slug(name)}": round(row["regret"][-1], 4) for name, row in first.items()}
    kept = ("speedup", "speedup_interval", "regret", "half", "trials", "completed", "repeats", "driver_ms")
    figures["tables"] = {
        title: {slug(name): {key: rounded(row[key]) for key in kept} for name, row in found.items()}
        for title, found in tables.items()
    }
    if not options.choose:
        figure(tables, [rivals.SWEEPER], options.figure)
        if rivals.SWEEPER in options.methods and len(ways) > 1:
            figures["hypervolume"] = gain(played, options.folder)
            say("\nsweeper's share of the whole that both have, at the same device time")
            say("\n".join(f"  {what:<50}{share:.4f}" for what, share in figures["hypervolume"].items()))
    figures["benchmark_s"] = round(time.perf_counter() - begun, 1)
    print(json.dumps(figures))


def slug(name: str) -> str:
    """A method's name in the JSON."""
    return "_".join("".join(char if char.isalnum() else " " for char in name).split())


def rounded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
