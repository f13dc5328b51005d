"""A space made ready: its data listed, its artifacts planned, its run named. Builds, starts and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import points, registry, spacefile
from sweeper.archive import find_run
from sweeper.datasets import DatasetIndex
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.forecast import Forecast
from sweeper.plan import Plan, make_plan
from sweeper.points import Point
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.store import Store
from sweeper.trial import NO_POOL, most_epochs

RUN_ID_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where a run works; nothing here changes a result. What `is_passing` writes goes away with its folder."""

    results: str = "results"
    store: str = ".sweeper/store"
    address: str | None = None
    is_passing: bool = False


@dataclass(frozen=True)
class Prepared:
    """A space that was read, its data listed and its artifacts planned."""

    space: SpaceFile
    plan: Plan
    store: Store
    folder: RunFolder
    first_points: tuple[Point, ...] = ()  # what the search tries first

    @property
    def max_epochs(self) -> int:
        """The most epochs of any trial of the space."""
        return most_epochs(self.space.space.corners())


def prepare(space: SpaceFile, options: Options) -> Prepared:
    """List the dataset and plan. Builds nothing, starts nothing, writes nothing.

    Raises:
        InputError: the dataset can not be read, or a run to start from is not there.
    """
    config = space.config
    first: list[Point] = [points.flat(space.space, tree)[0] for tree in config.search.points]
    for number, name in enumerate(config.search.warm_start):
        first += _front_of(name, options, space, f"search.warm_start.{number}")
    dataset: Any = config.dataset
    index: DatasetIndex = registry.load("datasets", dataset.kind).index(dataset, config.seed)
    if not index.class_names:
        raise InputError(
            f"dataset.kind: {dataset.kind!r} has no labels, and can stand under `pools:` only "
            f"({space.origin('dataset.kind')})"
        )
    asked = [name for name in space.space.finite("pretrain.pool", NO_POOL) if name != NO_POOL]
    pools: dict[str, DatasetIndex] = {}
    for name in asked:
        pool: Any = config.pools[name]
        pools[name] = registry.load("datasets", pool.kind).index(pool, config.seed)
    store = Store(options.store)
    identity = {"space": spacefile.identity(config), "data": index.content}
    identity |= {"pools": {name: found.content for name, found in pools.items()}} if pools else {}
    run_id = fingerprint(identity)[:RUN_ID_LENGTH]
    folder = RunFolder(Path(options.results) / config.name / run_id)
    return Prepared(space, make_plan(config, space.space, index, store, pools), store, folder, tuple(first))


def _front_of(name: str, options: Options, space: SpaceFile, path: str) -> list[Point]:
    """What an earlier run found best, most accurate first, as far as this space has it."""
    try:
        run = find_run(options.results, name)
    except InputError as error:
        raise InputError(f"{path}: {error} ({space.origin(path)})") from error
    trials = sorted(run.read_trials(), key=lambda trial: (-(trial["accuracy_val"] or 0.0), trial["trial"]))
    found = [points.known_part(space.space, trial["config"]) for trial in trials if trial["on_front"]]
    if not any(found):
        what = "shares no leaf with this space" if found else "has no finished search"
        raise InputError(
            f"{path}: run {run.label} {what}, so that nothing can be learnt from it ({space.origin(path)})"
        )
    return list(found)


def header(prepared: Prepared, expected: Forecast | None = None) -> list[str]:
    """What is asked, what there is, what will be built and, with a forecast, what that should cost."""
    plan, config = prepared.plan, prepared.plan.config
    counts = plan.index.split_counts()
    missing = {item.key for item in plan.missing(prepared.store)}
    lines = [
        f"sweeper {config.name}/{prepared.folder.run_id}",
        f"  data       {counts['train']} train, {counts['val']} val, {counts['test']} test images, "
        f"{len(plan.index.class_names)} classes",
    ]
    for name, pool in plan.pools.items():
        lines.append(f"  pool       {pool.units:,} unlabelled images ({name})")
    for kind, title in (("adapt", "teachers"), ("synthetic", "synthetic"), ("targets", "targets")):
        items = [item for item in plan.artifacts() if item.kind == kind]
        if items:
            built = sum(item.key not in missing for item in items)
            units = sum(item.units for item in items)
            what = {"adapt": ", ".join(item.name for item in items), "synthetic": f"{units:,} images"}.get(
                kind, f"{units:,} views"
            )
            state = "cached" if built == len(items) else f"{built} of {len(items)} cached" if built else "to build"
            lines.append(f"  {title:<10} {what} ({state})")
    budget = [f"{config.search.trials} trials"] if config.search.trials else []
    budget += [f"{config.search.gpu_hours:g} GPU-hours"] if config.search.gpu_hours else []
    budget += [f"{config.search.wall_hours:g} hours on the clock"] if config.search.wall_hours else []
    budget += [f"accuracy {config.search.target:g}"] if config.search.target else []
    final = f"{config.finalists.count} finalists x {config.finalists.seeds} seeds"
    scheduler: Any = config.search.scheduler
    how = f"{config.search.sampler} with {scheduler.kind}"
    lines.append(f"  search     {' or '.join(budget)}, {how}, then {final}")
    return [*lines, *([expected.line()] if expected is not None else [])]
