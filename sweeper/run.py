"""A sweep from its space file to its Pareto table: plan, build, search, finalists, results. Each part is elsewhere."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import spacefile, tables
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.pairs import check_models
from sweeper.plan import Plan
from sweeper.prepared import Options, Prepared, header, prepare
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.store import Record
from sweeper.wording import one_line

if TYPE_CHECKING:
    from sweeper.artifacts import Counter


def execute(space: SpaceFile, options: Options, console: Console) -> Prepared:
    """Run a sweep, or go on where it stopped, or show the table of a finished one.

    Raises:
        SweeperError: the input is wrong, or the run could not be finished; what was done is kept.
    """
    prepared = prepare(space, options)
    folder = prepared.folder
    if folder.finished:
        show(folder, console, fresh=False)
        return prepared
    check_models(space)
    if options.address is not None:
        from sweeper.session import refuse_dead

        refuse_dead(options.address)
    with _lock(folder.path):
        folder.write_space(spacefile.resolved(space.config))
        _execute(prepared, options, console)
    show(folder, console, fresh=True)
    return prepared


def _execute(prepared: Prepared, options: Options, console: Console) -> None:
    """The part that needs Ray, which a finished run and a user's mistake never import."""
    import ray

    from sweeper import artifacts, harvest, lane, slots
    from sweeper.forecast import forecast
    from sweeper.session import session
    from sweeper.sweep import Sweep

    config, plan = prepared.plan.config, prepared.plan
    expected = forecast(plan, prepared.space.space, prepared.store, is_local=options.address is None)
    console.header(header(prepared, expected))

    def stage(name: str, total: int, unit: str) -> AbstractContextManager[Counter]:
        return console.stage(name, total, unit)

    work = prepared.folder.path.absolute() / ".work"
    for scratch in ("train", "tune"):  # what Ray left when an earlier driver was killed; checkpoints stay
        shutil.rmtree(work / scratch, ignore_errors=True)
    with ExitStack() as stack:
        with console.stage("start" if options.address is None else f"join the cluster at {options.address}"):
            stack.enter_context(session(options.address, work / "ray.log"))
        records = artifacts.build(plan, prepared.store, stage, console.message)
        _report(plan, records, console)
        most = max(config.search.trials or 1_000, config.finalists.count * config.finalists.seeds)
        lanes = slots.plan_lanes(config.resources, ray.cluster_resources(), most)
        with lane.lanes(lanes, prepared.store.uri, work) as pool:
            sweep = Sweep(prepared, records, pool, console)
            book = sweep.search(work)
            finals = sweep.finalists(book)
    harvest.write(prepared.folder, plan, records, book, finals)
    shutil.rmtree(work, ignore_errors=True)


def _report(plan: Plan, records: Mapping[str, Record], console: Console) -> None:
    """What is odd about the images, and what the adapted teachers can do, before the search begins."""
    for title, item in {"": plan.images, **{f" of pool {name}": pool for name, pool in plan.pools.items()}}.items():
        meta = records[item.key].meta
        unreadable = [f"{one_line(lost['sample_id'])}: {lost['error']}" for lost in meta["unreadable"]]
        if unreadable:
            what = f"{len(unreadable)} of {item.units} images{title} could not be read and are left out:"
            _listed(console, what, unreadable, len(unreadable), ", all listed in environment.json")
        for found in meta.get("duplicates", ()):  # earlier artifacts have none
            (one, other), count = found["splits"], found["count"]
            what = f"images of {other} that are in {one}, too (by their pixels), and flatter its accuracy: {count}"
            pairs = [f"{one_line(second)} is {one_line(first)}" for first, second in found["examples"]]
            _listed(console, what, pairs, count, "; take them out of one of the two")
    for name, item in plan.adapt.items():
        meta = records[item.key].meta
        console.message(f"teacher {name}: {meta['accuracy_val']:.3f} on validation ({meta['adapt'].replace('_', ' ')})")


def _listed(console: Console, title: str, lines: Sequence[str], count: int, rest: str) -> None:
    """A warning with its first examples."""
    console.message(title, "yellow")
    for line in lines[:10]:
        console.message(f"  {line}")
    if count > 10:
        console.message(f"  and others{rest}")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One driver a run: the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another `sweeper run` works on this run; wait for it or stop it") from None
        yield


def show(folder: RunFolder, console: Console, *, fresh: bool) -> None:
    """The Pareto table of a finished run, its ablation, its files and how to use its best student."""
    rows: Sequence[Mapping[str, Any]] = folder.read_pareto()
    if not fresh:
        console.message(f"{folder.path}: finished earlier; nothing was started")
    console.message()
    console.table([dict(row) for row in rows])
    ablation = folder.read_ablation()
    if ablation:
        console.message()
        console.ablation(ablation)
    mattered = tables.importance_lines(folder.read_importance())
    rungs = folder.read_rungs()
    if mattered or rungs:
        console.message()
    for line in mattered:
        console.message(f"what mattered for {line}")
    if rungs:
        console.message(tables.rungs_sentence(rungs))
    best = rows[0].get("model") or rows[0]["trial"]  # earlier runs have one row a trial, and no such column
    console.message()
    console.message(f"files: {folder.path}/ (pareto.csv, report.html, pareto.png, models/)")
    console.message(f'best student: timm.create_model("local-dir:{folder.path}/models/{best}", pretrained=True)')
