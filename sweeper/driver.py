"""A sweep from its space file to its Pareto table: plan, build, search, finalists, results. Each part is elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from sweeper import adaptations, findings, run_lock, sieve, spacefile, tracking
from sweeper.console import Console
from sweeper.journals import STUDY_JOURNAL
from sweeper.layout import rich_table
from sweeper.pairs import check_models
from sweeper.plan import Plan
from sweeper.prepared import Options, Prepared, header, prepare
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.store import Record
from sweeper.tables import TextTable
from sweeper.wording import one_line

if TYPE_CHECKING:
    from sweeper.artifacts import Counter
    from sweeper.tracking import Tracking


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
    compared = work(prepared, options, console)
    if compared is not None:
        console.message()
        console.show(rich_table(compared))
    show(folder, console, fresh=True)
    return prepared


def work(prepared: Prepared, options: Options, console: Console) -> TextTable | None:
    """All of a run but showing its results; returns the forecast beside the fact, where the run was whole.

    Raises:
        SweeperError: as `execute`.
    """
    check_models(prepared.space)
    tracking.check(prepared.space.config)
    if options.address is not None:
        from sweeper.session import refuse_dead

        refuse_dead(options.address)
    with run_lock.held(prepared.folder.path), console.run(prepared.folder.path):
        prepared.folder.write_space(spacefile.resolved(prepared.space.config))
        with tracking.following(prepared.folder, prepared.space.config, console.message) as tracked:
            return _execute(prepared, options, console, tracked)


def _execute(prepared: Prepared, options: Options, console: Console, tracked: Tracking) -> TextTable | None:
    """The part that needs Ray, which a finished run and a user's mistake never import."""
    import ray

    from sweeper import artifacts, contact_sheet, duplicates, harvest, lane, nodes, planning, reckoning, slots
    from sweeper.follow import expect
    from sweeper.session import session
    from sweeper.sweep import Sweep

    config, plan = prepared.plan.config, prepared.plan
    clock = reckoning.Clock()
    expected = planning.for_run(prepared, options)
    missing = plan.missing(prepared.store)
    is_whole = reckoning.begin(prepared.folder, expected, missing)
    expect(console.monitor, prepared, missing)
    console.header(header(prepared, expected))

    def stage(name: str, total: int, unit: str) -> AbstractContextManager[Counter]:
        return clock.around(name, console.stage(name, total, unit))

    work = prepared.folder.path.absolute() / ".work"
    for scratch in ("train", "tune"):  # what Ray left when an earlier driver was killed; checkpoints stay
        shutil.rmtree(work / scratch, ignore_errors=True)
    with ExitStack() as stack:
        with console.stage("start" if options.address is None else f"join the cluster at {options.address}"):
            stack.enter_context(session(options.address, work / "ray.log"))
        has_gpus = nodes.has_gpus(may_grow=options.address is not None)
        records = artifacts.build(plan, prepared.store, stage, console.message, has_gpus=has_gpus)
        leaked = duplicates.across_pools(plan, prepared.store, records)
        _report(plan, records, console, leaked)
        sheets = contact_sheet.write(prepared.folder.path, plan, prepared.store, records)
        if sheets and not options.is_passing:
            console.message(f"to look at: {', '.join(str(path) for path in sheets)}")
        most = max(config.search.trials or 1_000, config.finalists.count * config.finalists.seeds)
        if options.address is None:
            totals = ray.cluster_resources()
            lanes = slots.plan_lanes(config.resources, totals, most)
            if lanes.num_lanes < (others := min(lanes.fits([totals]), most)):
                console.message(f"memory for {lanes.num_lanes} lanes, of {others} that the processors would take")
        else:
            lanes = slots.elastic_lanes(config.resources, has_gpus=has_gpus, most=most, head_memory=nodes.memory_here())
        shortage = nodes.Shortage(console.message, config.resources.wait_minutes)
        with lane.LanePool(lanes, prepared.store.uri, work, shortage=shortage) as pool:
            sweep = Sweep(prepared, records, pool, console, tracked)
            with clock.around("search"):
                book = sweep.search(work)
            with clock.around("finalists"):
                finals = sweep.finalists(book)
    harvest.write(prepared.folder, plan, records, book, finals, leaked)
    tracked.front(prepared.folder)
    compared = reckoning.end(prepared.folder, clock, is_whole=is_whole)
    prepared.folder.write_report()
    prepared.folder.finish()
    shutil.rmtree(work, ignore_errors=True)
    return compared


def _report(
    plan: Plan, records: Mapping[str, Record], console: Console, leaked: Sequence[Mapping[str, Any]] = ()
) -> None:
    """What is odd about the images, and what the adapted teachers can do, before the search begins.

    Args:
        leaked: as `duplicates.across_pools` finds them.
    """
    twice = [*leaked]
    for title, item in {"": plan.images, **{f" of pool {name}": pool for name, pool in plan.pools.items()}}.items():
        meta = records[item.key].meta
        unreadable = [f"{one_line(lost['sample_id'])}: {lost['error']}" for lost in meta["unreadable"]]
        if unreadable:
            what = f"{len(unreadable)} of {item.units} images{title} could not be read and are left out:"
            _listed(console, what, unreadable, len(unreadable), ", all listed in environment.json")
        twice += meta.get("duplicates", ())  # earlier artifacts have none
    for found in twice:
        (one, other), count = found["splits"], found["count"]
        what = f"images of {other} that are in {one}, too (by their pixels), and flatter its accuracy: {count}"
        pairs = [f"{one_line(second)} is {one_line(first)}" for first, second in found["examples"]]
        _listed(console, what, pairs, count, "; take them out of one of the two")
    for name, what in adaptations.told(plan, records).items():
        console.message(f"teacher {name}: {what}")
    for source, parts in plan.synthetic.items():
        if told := sieve.sentence([records[part.key].meta.get("filter") for part in parts]):
            console.message(f"filter of {source}: {told}")


def _listed(console: Console, title: str, lines: Sequence[str], count: int, rest: str) -> None:
    """A warning with its first examples."""
    console.message(title, "yellow")
    for line in lines[:10]:
        console.message(f"  {line}")
    if count > 10:
        console.message(f"  and others{rest}")


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
    mattered = findings.importance_lines(folder.read_importance())
    rungs = folder.read_rungs()
    if mattered or rungs:
        console.message()
    for line in mattered:
        console.message(f"what mattered for {line}")
    if rungs:
        console.message(findings.rungs_sentence(rungs))
    best = rows[0].get("model") or rows[0]["trial"]  # earlier runs have one row a trial, and no such column
    console.message()
    console.message(f"files: {folder.path}/ (pareto.csv, report.html, pareto.png, models/)")
    if (folder.path / STUDY_JOURNAL).exists():
        console.message(f"study: optuna-dashboard {folder.path / STUDY_JOURNAL}")
    console.message(f'best student: timm.create_model("local-dir:{folder.path}/models/{best}", pretrained=True)')
