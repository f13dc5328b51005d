"""Builds what a plan asks for and the store lacks: images, adapted teachers, synthetic images, targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import ray

from sweeper import adapt, ingest, nodes, synthesize, targets
from sweeper.errors import RunFailed
from sweeper.lease import Leases, Tell, Times, hold, untold
from sweeper.plan import Artifact, Plan
from sweeper.slots import LanePlan
from sweeper.store import Record, Store


class Counter(Protocol):
    """A stage's progress: what is done, in how many bytes, and what it cost in device-seconds."""

    def advance(self, count: int = 1, size: int = 0, /, *, is_new: bool = True) -> None: ...

    def spend(self, seconds: float, device: str) -> None: ...


StageView = Callable[[str, int, str], AbstractContextManager[Counter]]  # name, total, unit


def build(
    plan: Plan,
    store: Store,
    stage: StageView,
    tell: Tell = untold,
    times: Times | None = None,
    *,
    has_gpus: bool = False,
) -> dict[str, Record]:
    """Build everything that is missing, in order, and return the records of all artifacts by key.

    What another driver is building is waited for, and what one left unfinished is gone on with.

    Args:
        stage: opens the progress bar of a stage.
        tell: a line for the user: for whom this driver waits, and what it need not do again.
        times: how soon a driver that gives no sign of life counts as dead.
        has_gpus: each worker of a stage with a model has one, and is waited for where no node has one yet.
    """
    gpus = 1.0 if has_gpus else 0.0
    by_kind: dict[str, list[Artifact]] = {}
    for item in plan.missing(store):
        by_kind.setdefault(item.kind, []).append(item)

    def held(items: list[Artifact]) -> AbstractContextManager[Leases]:
        return hold(store, {item.key: f"{item.kind} {item.name!r}" for item in items}, tell, times)

    def wait_for(what: str, gpus: float) -> None:
        nodes.wait_for(what, LanePlan(1, workers=1, cpus=1, gpus=gpus), plan.config.resources.wait_minutes, tell)

    if by_kind:
        wait_for("a worker", 0.0)
    for item in by_kind.get("images", ()):
        with held([item]) as leases:
            if leases.keys:
                _images(plan, store, item, leases, stage, tell)
    if by_kind.keys() - {"images"}:
        wait_for("a worker with a model", gpus)
    with held(by_kind.get("adapt", [])) as leases:
        _adapt(plan, store, [item for item in by_kind.get("adapt", ()) if item.key in leases.keys], gpus, stage)
    for item in by_kind.get("synthetic", ()):
        with held([item]) as leases:
            if leases.keys:
                _synthetic(plan, store, item, leases, gpus, stage, tell)
    with held(by_kind.get("targets", [])) as leases:
        _targets(plan, store, leases, gpus, stage, tell)
    records = {item.key: store.get(item.key) for item in plan.artifacts()}
    absent = [item for item in plan.artifacts() if records[item.key] is None]
    if absent:
        one = absent[0]
        raise RunFailed(f"{one.kind} {one.name!r} was built and is not in {store.uri}; does something delete it?")
    return {key: record for key, record in records.items() if record is not None}


def _images(plan: Plan, store: Store, item: Artifact, leases: Leases, stage: StageView, tell: Tell) -> None:
    """Those of the task, or of a pool."""
    name = {pool.key: name for name, pool in plan.pools.items()}.get(item.key)
    dataset = plan.config.dataset if name is None else plan.config.pools[name]
    index = plan.index if name is None else plan.pool_indexes[name]
    with stage("images" if name is None else f"images ({name})", item.units, "images") as counter:
        prefix = leases.prefix([item.key])
        ingest.build(store, item, dataset, index, prefix=prefix, progress=counter.advance, tell=tell)


def _adapt(plan: Plan, store: Store, items: list[Artifact], gpus: float, stage: StageView) -> None:
    """One task a teacher, side by side where the cluster has room."""
    if not items:
        return
    task = ray.remote(num_cpus=1, num_gpus=gpus or None)(adapt.build)
    with stage("adapt", len(items), "teachers" if len(items) > 1 else "teacher") as counter:
        waiting = [
            task.remote(store, item, plan.config.teachers[item.name], plan.index.class_names, plan.config.views)
            for item in items
        ]
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            record = ray.get(done)
            counter.advance(1, sum(file.size for file in record.files))
            _charge(counter, [record])


def _synthetic(
    plan: Plan, store: Store, item: Artifact, leases: Leases, gpus: float, stage: StageView, tell: Tell
) -> None:
    """One part of a source's images."""
    with stage(f"synthetic images ({item.name})", item.units, "images") as counter:
        record = synthesize.build(
            store,
            item,
            plan.config.synthetic[item.name],
            teachers=plan.config.teachers,
            prefix=leases.prefix([item.key]),
            gpus=gpus,
            progress=counter.advance,
            tell=tell,
        )
        _charge(counter, [record])


def _targets(plan: Plan, store: Store, leases: Leases, gpus: float, stage: StageView, tell: Tell) -> None:
    """One pass for all teachers: image sets that lack the same teachers are read together."""
    passes: dict[tuple[tuple[str, tuple[str, ...]], ...], list[str]] = {}
    for images in dict.fromkeys(key for _, key in plan.targets):
        lacking = tuple(
            (teacher, tuple(item.spec["columns"]))
            for (teacher, key), item in plan.targets.items()
            if key == images and item.key in leases.keys
        )
        if lacking:
            passes.setdefault(lacking, []).append(images)
    for wanted, image_sets in passes.items():
        teachers = [name for name, _ in wanted]
        items = {(name, key): plan.targets[name, key] for name in teachers for key in image_sets}
        spec = targets.PassSpec(
            teachers=tuple(
                targets.TeacherRef(name, plan.config.teachers[name], plan.adapt[name].key, columns)
                for name, columns in wanted
            ),
            views=plan.config.views,
            seed=plan.config.seed,
            class_names=plan.index.class_names,
            prefixes={key: leases.prefix([items[name, key].key for name in teachers]) for key in image_sets},
        )
        rows = sum(plan.targets[teachers[0], key].units for key in image_sets)
        with stage(f"targets ({', '.join(teachers)})", rows, "views") as counter:
            made = targets.build(store, items, spec, gpus=gpus, progress=counter.advance, tell=tell)
            _charge(counter, made)


def _charge(counter: Counter, records: Iterable[Record]) -> None:
    for record in records:
        if record.charge is not None:
            counter.spend(record.charge.seconds, record.charge.device)
