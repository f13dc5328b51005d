"""The two parts of a run that train students on lanes: the search, and the finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sweeper import finalists, harvest, search
from sweeper.batches import DataRefs, TeacherRefs
from sweeper.console import Console, LaneView
from sweeper.errors import RunFailed
from sweeper.lane import Job, LanePool
from sweeper.ledger import Cost
from sweeper.plan import Plan, artifact_uses
from sweeper.prepared import Prepared
from sweeper.store import Record
from sweeper.study import Study
from sweeper.trial import TrialConfig


def data_refs(plan: Plan, trial: TrialConfig) -> DataRefs:
    """Keys of the artifacts that a trial's training on the task reads."""
    sets = [use.artifact.key for use in plan.image_sets(trial)]
    return DataRefs(
        images=sets[0],
        synthetic=tuple(sets[1:]),
        num_synthetic=plan.num_synthetic(trial),
        teachers=_teacher_refs(plan, trial, sets),
        is_separate=plan.config.embeds_separately(trial.teacher),
    )


def pool_refs(plan: Plan, trial: TrialConfig) -> DataRefs | None:
    """Keys of the artifacts that its pre-training reads; None without one."""
    first = trial.pretraining
    if first is None:
        return None
    images = plan.pools[trial.pretrain.pool].key
    return DataRefs(
        images=images,
        teachers=_teacher_refs(plan, first, [images]),
        is_separate=plan.config.embeds_separately(first.teacher),
    )


def _teacher_refs(plan: Plan, trial: TrialConfig, sets: Sequence[str]) -> tuple[TeacherRefs, ...]:
    return tuple(
        TeacherRefs(
            adapt=plan.adapt[member].key,
            config=plan.config.teachers[member],
            targets=() if trial.is_online else tuple(plan.targets[member, key].key for key in sets),
        )
        for member in plan.config.members(trial.teacher)
    )


class Sweep:
    """The two parts of a run that train students on lanes."""

    def __init__(self, prepared: Prepared, records: Mapping[str, Record], pool: LanePool, console: Console) -> None:
        self.prepared, self.records, self.pool, self.console = prepared, records, pool, console
        self.plan, self.config = prepared.plan, prepared.plan.config
        self.device = harvest.device_of(records.values())

    def cost(self, trial: TrialConfig, train_seconds: float) -> Cost:
        """What a trial alone would have cost."""
        return Cost.alone(train_seconds, artifact_uses(self.plan, trial, self.records))

    def job(self, trial: TrialConfig, seed: int, final: bool) -> Job:
        """The job of one training."""
        return Job(
            config=trial.model_dump(mode="json"),
            refs=data_refs(self.plan, trial),
            pool=pool_refs(self.plan, trial),
            views=self.config.views,
            view_seed=self.config.seed,
            seed=seed,
            final=final,
        )

    def search(self, work: Path) -> Study:
        """Run the search to its end; returns the study."""
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

    def finalists(self, book: Study) -> list[harvest.Final]:
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
        with self.console.stage("finalists", total, "trainings" if total > 1 else "training") as counter:

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
            name = label(event["config"]) if "config" in event else job
            self.view.update(lane, number, name, event["epoch"], event["epochs"], event["accuracy_val"])
        elif event["type"] == "end" and "config" in event:
            config = cast(TrialConfig, event["config"])
            hours = event["cost"].as_hours()["gpu_hours"]
            self.view.finished(
                event["trial"], event["state"], label(config), event["accuracy_val"], hours, event["error"]
            )


def label(config: TrialConfig) -> str:
    """A configuration in a few words."""
    synthetic = f" +{config.synthetic.ratio:g}x {config.synthetic.source}" if config.synthetic.ratio else ""
    return f"{config.taught_by} > {config.student.model}, {config.loss_name}{synthetic}"
