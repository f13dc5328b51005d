"""A sweep from its space file to its Pareto table: plan, build, search, finalists, results. Each part is elsewhere."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sweeper import finalists, harvest, registry, spacefile
from sweeper.artifacts import Counter
from sweeper.config import NO_TEACHER, TrialConfig
from sweeper.console import Console, LaneView
from sweeper.datasets import DatasetIndex
from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.fingerprint import fingerprint
from sweeper.forecast import Forecast, forecast
from sweeper.ledger import Cost
from sweeper.plan import Plan, artifact_uses, make_plan
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.store import Record, Store

DEFAULT_STORE = ".sweeper/store"
RUN_ID_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where a run works; nothing here changes a result."""

    results: str = "results"
    store: str = DEFAULT_STORE
    address: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A space that was read, its data listed and its artifacts planned."""

    space: SpaceFile
    plan: Plan
    store: Store
    folder: RunFolder

    @property
    def max_epochs(self) -> int:
        """The most epochs of any trial of the space."""
        return int(max(point["train"]["epochs"] for point in self._corners()))

    def _corners(self) -> Iterator[dict[str, Any]]:
        for corner in self.space.space.corners():
            yield TrialConfig.model_validate(corner).model_dump()


def prepare(space: SpaceFile, options: Options) -> Prepared:
    """List the dataset and plan. Builds nothing, starts nothing, writes nothing.

    Raises:
        InputError: the dataset can not be read.
    """
    config = space.config
    dataset: Any = config.dataset
    index: DatasetIndex = registry.load("datasets", dataset.kind).index(dataset, config.seed)
    store = Store(os.environ.get("SWEEPER_STORE", options.store) if options.store == DEFAULT_STORE else options.store)
    identity = {"space": spacefile.identity(config), "data": index.content}
    run_id = fingerprint(identity)[:RUN_ID_LENGTH]
    folder = RunFolder(Path(options.results) / config.name / run_id)
    return Prepared(space, make_plan(config, space.space, index, store), store, folder)


def header(prepared: Prepared, expected: Forecast) -> list[str]:
    """What is asked, what there is, what will be built and what that should cost."""
    plan, config = prepared.plan, prepared.plan.config
    counts = plan.index.split_counts()
    missing = {item.key for item in plan.missing(prepared.store)}
    lines = [
        f"sweeper {config.name}/{prepared.folder.run_id}",
        f"  data       {counts['train']} train, {counts['val']} val, {counts['test']} test images, "
        f"{len(plan.index.class_names)} classes",
    ]
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
    final = f"{config.finalists.count} finalists x {config.finalists.seeds} seeds"
    lines.append(f"  search     {' or '.join(budget)}, {config.search.sampler}, then {final}")
    return [*lines, *expected.lines()]


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
    with _lock(folder.path):
        folder.write_space(spacefile.resolved(space.config))
        try:
            _execute(prepared, options, console)
        except SweeperError:
            raise
        except Exception as error:
            from sweeper.session import users_error

            known = users_error(error)
            if known is None:
                raise
            raise known from error
    show(folder, console, fresh=True)
    return prepared


def _execute(prepared: Prepared, options: Options, console: Console) -> None:
    from sweeper import artifacts, lane
    from sweeper.session import session

    config, plan = prepared.plan.config, prepared.plan
    console.header(header(prepared, forecast(plan, prepared.space.space, prepared.store)))
    with session(options.address):

        def stage(name: str, total: int, unit: str) -> AbstractContextManager[Counter]:
            return console.stage(name, total, unit)

        import ray

        records = artifacts.build(plan, prepared.store, stage)
        _teachers(plan, records, console)
        most = max(config.search.trials or 1_000, config.finalists.count * config.finalists.seeds)
        lanes = lane.plan_lanes(config.resources, ray.cluster_resources(), most)
        work = prepared.folder.path.absolute() / ".work"
        for scratch in ("train", "tune"):  # what Ray left when an earlier driver was killed; checkpoints stay
            shutil.rmtree(work / scratch, ignore_errors=True)
        with lane.lanes(lanes, prepared.store.uri, work) as pool:
            sweep = Sweep(prepared, records, pool, console)
            book = sweep.search(work)
            entries = sweep.finalists(book)
        harvest.write(prepared.folder, plan, records, book, entries)
    shutil.rmtree(work, ignore_errors=True)


def _teachers(plan: Plan, records: Mapping[str, Record], console: Console) -> None:
    """What the probed teachers can do, before the search begins."""
    for name, item in plan.adapt.items():
        meta = records[item.key].meta
        console.message(f"teacher {name}: {meta['accuracy_val']:.3f} on validation ({meta['adapt'].replace('_', ' ')})")


class Sweep:
    """The two parts of a run that train students on lanes."""

    def __init__(self, prepared: Prepared, records: Mapping[str, Record], pool: Any, console: Console) -> None:
        self.prepared, self.records, self.pool, self.console = prepared, records, pool, console
        self.plan, self.config = prepared.plan, prepared.plan.config
        self.device = harvest.device_of(records.values())

    def cost(self, trial: TrialConfig, train_seconds: float) -> Cost:
        """What a trial alone would have cost."""
        return Cost.alone(train_seconds, artifact_uses(self.plan, trial, self.records))

    def job(self, trial: TrialConfig, seed: int, final: bool) -> Any:
        """The job of one training."""
        from sweeper.batches import DataRefs
        from sweeper.lane import Job

        sets = [use.artifact.key for use in self.plan.image_sets(trial)]
        taught = trial.teacher != NO_TEACHER
        refs = DataRefs(
            images=sets[0],
            synthetic=tuple(sets[1:]),
            num_synthetic=self.plan.num_synthetic(trial),
            targets=tuple(self.plan.targets[trial.teacher, key].key for key in sets) if taught else (),
        )
        return Job(
            config=trial.model_dump(mode="json"),
            refs=refs,
            views=self.config.views,
            view_seed=self.config.seed,
            seed=seed,
            final=final,
        )

    def search(self, work: Path) -> Any:
        """Run the search to its end; returns the study."""
        from sweeper import search
        from sweeper.study import Study

        settings = self.config.search
        book = Study(self.prepared.folder.path / "journal.log", settings, self.prepared.space.space, self.config.seed)
        shared = sum(record.charge.seconds for record in self.records.values() if record.charge)
        earlier = book.trials()
        with self.console.lanes(self.pool.plan.num_lanes, settings.trials, self.device) as view:
            view.earlier(
                [
                    {"trial": t.number, **{k: t.user_attrs["outcome"][k] for k in ("state", "accuracy_val")}}
                    for t in earlier
                ]
            )
            hooks = search.Hooks(
                make_job=lambda trial: self.job(trial, self.config.seed, final=False),
                cost=self.cost,
                shared_seconds=shared,
                on_event=_Follow(view),
            )
            search.run(book, self.pool, settings, self.prepared.max_epochs, hooks, work)
        return book

    def finalists(self, book: Any) -> list[harvest.Final]:
        """Retrain the front and the arms of the ablation; returns them with what they reached."""
        settings = self.config.finalists
        candidates = harvest.candidates(book)
        if not candidates:
            raise RunFailed(f"search: no trial was completed; {harvest.first_error(book)}")
        entries = finalists.select(candidates, self.config.search.objectives, settings.count)
        if settings.ablate:
            entries += finalists.arms(candidates)
        seeds = [self.config.seed + 1 + i for i in range(settings.seeds)]
        outcomes = finalists.Outcomes(self.prepared.folder.path / "finalists")
        total = len({finalists.job_name(e.config, seed) for e in entries for seed in seeds})
        with self.console.stage("finalists", total, "trainings") as counter:

            def count(event: Mapping[str, Any]) -> None:
                if event["type"] == "end":
                    counter.advance()

            finalists.train(
                entries, seeds, self.pool, outcomes, lambda trial, seed: self.job(trial, seed, final=True), count
            )
        return [harvest.Final(e, finalists.summarise(e, seeds, outcomes), seeds, outcomes) for e in entries]


class _Follow:
    """Turns the mailbox's events into the live view."""

    def __init__(self, view: LaneView) -> None:
        self.view = view

    def __call__(self, event: Mapping[str, Any]) -> None:
        job = str(event.get("job", ""))
        number = int(job.removeprefix("trial-")) if job.startswith("trial-") else None
        lane = int(event["lane"])
        if event["type"] == "lane":
            self.view.update(lane, None, "waiting for a trial", 0, 0, None)
        elif event["type"] == "report":
            self.view.update(lane, number, job, event["epoch"], event["epochs"], event["accuracy_val"])
        elif event["type"] == "end" and "config" in event:
            config = cast(TrialConfig, event["config"])
            hours = event["cost"].as_hours()["gpu_hours"]
            self.view.finished(
                event["trial"], event["state"], label(config), event["accuracy_val"], hours, event["error"]
            )


def label(config: TrialConfig) -> str:
    """A configuration in a few words."""
    synthetic = f" +{config.synthetic.ratio:g}x {config.synthetic.source}" if config.synthetic.ratio else ""
    return f"{config.teacher} > {config.student.model}, {config.loss_name}{synthetic}"


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
    best = rows[0]["trial"]
    console.message()
    console.message(f"files: {folder.path}/ (pareto.csv, report.html, pareto.png, models/)")
    console.message(f'best student: timm.create_model("local-dir:{folder.path}/models/{best}", pretrained=True)')
