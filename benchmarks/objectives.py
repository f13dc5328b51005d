"""What each distillation objective adds at one fixed point of `search_spaces/datalimited.yaml`: the README's table.

    python benchmarks/objectives.py

Every kind that reads cached targets gets the same images, views, teacher (`cnn`), student (`test_resnet`), recipe and
budget: cross-entropy at weight 1 plus the loss at weight 1, divided by its own size as `sweeper run` does it. The row
`no teacher` is cross-entropy alone. Nothing is tuned for any of them, so that the table ranks defaults at one point and
not papers; a search over weights and rates is what `sweeper run` is for.

The artifacts are built once by sweeper's own stages; the students are then trained by `train.fit` in worker processes
of one torch thread each, seed by seed, so that a busy machine slows all kinds alike. Accuracies are means over the
seeds with the sample standard deviation; seconds are the median of a training's, its validation included. The test
split decides the order of the rows and nothing else. The exit code is 1 if a kind fails. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sweeper import registry, spacefile
from sweeper.losses import ONLINE
from sweeper.spacefile import SpaceFile
from sweeper.trial import NO_EMBEDDING, NO_TEACHER, TrialConfig
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    from sweeper.batches import DataRefs
    from sweeper.data_cache import DataCache
    from sweeper.plan import Plan

SPACE = Path(__file__).parents[1] / "search_spaces" / "datalimited.yaml"
TEACHER, STUDENT = "cnn", "test_resnet"
EPOCHS, EPOCH_SIZE, LR = 15, 640, 3e-3
NO_CHECKPOINTS: Any = SimpleNamespace(load=lambda: None, save=lambda state: None, is_urgent=lambda: False)


@dataclass(frozen=True)
class Arm:
    """A row of the table: a kind of loss (None: no teacher), and synthetic images per real one."""

    kind: str | None
    ratio: float = 0.0

    @property
    def name(self) -> str:
        """For the table, and with `_` in place of blanks for the JSON: `kl`, `no teacher 5x`."""
        return (self.kind or "no teacher") + (f" {self.ratio:g}x" if self.ratio else "")


@dataclass(frozen=True)
class Training:
    """All that a worker needs for one training besides the store."""

    arm: Arm
    seed: int
    config: TrialConfig
    refs: DataRefs
    views: ViewConfig
    view_seed: int


@dataclass(frozen=True)
class Result:
    """What one training reached; `error` says why it did not."""

    arm: Arm
    seed: int
    val: float = math.nan
    test: float = math.nan
    seconds: float = math.nan
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """An arm over its seeds; accuracies as (mean, sample standard deviation), NaN for that of one seed.

    `seconds` is the median of a training's: a mean would show the other work on the machine. `factor` is the time over
    that without a teacher, on the same images. `error` says why the arm failed, if it did for any seed.
    """

    arm: Arm
    test: tuple[float, float]
    val: tuple[float, float]
    seconds: float
    factor: float
    error: str | None


def kinds(*, online: bool) -> list[str]:
    """The losses that read a cache, and with `online` those whose teacher runs in the loop as well."""
    return [kind for kind in registry.kinds("losses") if online or not registry.load("losses", kind).NEEDS & ONLINE]


def point_file(arms: Sequence[Arm], epochs: int = EPOCHS) -> SpaceFile:
    """The space file with everything fixed but what the arms differ in."""
    named = ", ".join(dict.fromkeys(arm.kind for arm in arms if arm.kind))
    ratios = ", ".join(f"{ratio:g}" for ratio in dict.fromkeys(arm.ratio for arm in arms))
    fixed = {
        "teacher": f"{{choice: [{TEACHER}, {NO_TEACHER}]}}",
        "student.model": STUDENT,
        "synthetic.ratio": f"{{choice: [{ratios}]}}" if "," in ratios else ratios,
        "synthetic.labels": "hard",
        "loss": f"{{ce: 1, embedding: {{kind: {{choice: [{NO_EMBEDDING}, {named}]}}, weight: 1}}}}",
        "train.epochs": epochs,
        "train.epoch_size": EPOCH_SIZE,
        "train.lr": LR,
    }
    return spacefile.load(SPACE, ["search.points=[]", *(f"trial.{path}={value}" for path, value in fixed.items())])


def point(tree: Mapping[str, Any], arm: Arm) -> TrialConfig:
    """The one configuration of an arm; the other settings of the `trial:` section are constants."""
    loss = {"ce": 1.0, "embedding": {"kind": arm.kind, "weight": 1.0}} if arm.kind else {"ce": 1.0}
    changed = {
        "teacher": TEACHER if arm.kind else NO_TEACHER,
        "loss": loss,
        "synthetic": {**tree["synthetic"], "ratio": arm.ratio},
    }
    return TrialConfig.model_validate({**tree, **changed}).resolved()


def build(space: SpaceFile, store_uri: str, log: Path, *, quiet: bool) -> Plan:
    """Build the artifacts as `sweeper run` does, in a Ray session that ends with them; returns their plan."""
    from sweeper import artifacts
    from sweeper.console import Console
    from sweeper.prepared import Options, prepare
    from sweeper.session import session

    prepared = prepare(space, Options(store=store_uri))
    with session(None, log):
        artifacts.build(prepared.plan, prepared.store, Console(quiet=quiet).stage)
    return prepared.plan


def trainings(plan: Plan, arms: Sequence[Arm], seeds: int) -> list[Training]:
    """Every arm with the first seed, then with the next."""
    from sweeper.sweep import data_refs

    seen = (plan.config.views, plan.config.seed)
    points = {arm: point(plan.config.trial, arm) for arm in arms}
    read = {arm: data_refs(plan, points[arm]) for arm in arms}
    return [Training(arm, 1 + seed, points[arm], read[arm], *seen) for seed in range(seeds) for arm in arms]


@cache
def data_cache(store_uri: str) -> DataCache:
    """The tables that this process has read."""
    from sweeper.data_cache import DataCache
    from sweeper.store import Store

    return DataCache(Store(store_uri))


def train_one(store_uri: str, training: Training) -> Result:
    """One training; whatever stops it is the row's reason, for the other kinds go on."""
    import torch

    from sweeper import train

    config = training.config
    try:
        views: dict[str, Any] = {"view_config": training.views, "view_seed": training.view_seed}
        data = data_cache(store_uri).trial_data(training.refs, needs=config.needs, **views, with_test=True)
        outcome = train.fit(
            config,
            data,
            seed=training.seed,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            report=lambda _: True,
            slot=NO_CHECKPOINTS,
            with_test=True,
            keep_model=False,
        )
    except Exception as error:
        return Result(training.arm, training.seed, error=" ".join(f"{type(error).__name__}: {error}".split()))
    assert outcome.accuracy_test is not None
    return Result(training.arm, training.seed, outcome.accuracy_val, outcome.accuracy_test, outcome.train_seconds)


def start_worker(store_uri: str, first: Training) -> None:
    """One thread, and an epoch that does not count: the first one of a process loads torch and timm."""
    import torch

    torch.set_num_threads(1)
    recipe = first.config.train.model_copy(update={"epochs": 1})
    train_one(store_uri, replace(first, config=first.config.model_copy(update={"train": recipe})))


def train_all(store_uri: str, wanted: Sequence[Training], workers: int) -> Iterator[Result]:
    """The results as they come."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=start_worker, initargs=(store_uri, wanted[0])) as pool:
        for done in as_completed([pool.submit(train_one, store_uri, training) for training in wanted]):
            yield done.result()


def rows(results: Iterable[Result]) -> list[Row]:
    """One row an arm, the best on the test split first and the failed ones last."""
    by_arm: dict[Arm, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result.arm, []).append(result)
    seconds = {arm: statistics.median(result.seconds for result in found) for arm, found in by_arm.items()}
    made = [
        Row(
            arm=arm,
            test=_spread([result.test for result in found]),
            val=_spread([result.val for result in found]),
            seconds=seconds[arm],
            factor=seconds[arm] / seconds[Arm(None, arm.ratio)],
            error=next((result.error for result in found if result.error), None),
        )
        for arm, found in by_arm.items()
    ]
    return sorted(made, key=lambda row: (row.error is not None, 0 if row.error else -row.test[0], row.arm.name))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def markdown(found: Sequence[Row]) -> str:
    """The README's table; accuracies in percent."""
    lines = ["| loss | of | test | validation | seconds | time |", "|---|---|---|---|---|---|"]
    for row in found:
        kind = row.arm.kind
        cells = [row.arm.name, registry.load("losses", kind).PAPER if kind else "cross-entropy alone"]
        if row.error:
            cells += [f"failed: {row.error.replace('|', '/')}", "", "", ""]
        else:
            for mean, std in (row.test, row.val):
                cells.append(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if math.isfinite(std) else ""))
            cells += [f"{row.seconds:.1f}", f"{row.factor:.2f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(found: Sequence[Row], seeds: int) -> dict[str, Any]:
    """The JSON line: for each arm its accuracies, seconds and factor, and the reasons of those that failed."""
    flat: dict[str, Any] = {}
    for row in (row for row in found if not row.error):
        key = row.arm.name.replace(" ", "_")
        for split, (mean, std) in (("test", row.test), ("val", row.val)):
            flat[f"{key}_{split}"] = round(mean, 4)
            flat[f"{key}_{split}_std"] = round(std, 4) if math.isfinite(std) else None
        flat[f"{key}_seconds"] = round(row.seconds, 3)
        flat[f"{key}_time_ratio"] = round(row.factor, 3) if math.isfinite(row.factor) else None
    return {**flat, "seeds": seeds, "failed": {row.arm.name: row.error for row in found if row.error}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=registry.kinds("losses"), metavar="KIND")
    parser.add_argument("--online", action="store_true", help="the losses whose teacher runs in the loop as well")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.0], help="synthetic images per real one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", help="folder of the artifacts, kept; default: a temporary one")
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, before they import torch
    arms = [
        Arm(kind, ratio)
        for ratio in options.ratios
        for kind in (None, *(options.kinds or kinds(online=options.online)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        store_uri = options.store or f"{folder}/store"
        space = point_file(arms, options.epochs)
        plan = build(space, store_uri, Path(folder) / "ray.log", quiet=options.json_only)
        wanted, results = trainings(plan, arms, options.seeds), []
        for result in train_all(store_uri, wanted, options.workers):
            results.append(result)
            if not options.json_only:
                said = result.error or f"test {100 * result.test:5.1f}%  {result.seconds:6.1f} s"
                print(f"{len(results):4}/{len(wanted)}  {result.arm.name}, seed {result.seed}: {said}", flush=True)
    found = rows(results)
    if not options.json_only:
        print(f"\n{markdown(found)}\n")
    print(json.dumps(figures(found, options.seeds)))
    sys.exit(any(row.error is not None for row in found))


if __name__ == "__main__":
    main()
