"""The two parts of a run that train students on lanes: the search, and the finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper import adaptations, finalists, harvest, search
from sweeper.batches import DataRefs, TeacherRefs
from sweeper.console import Console, Search
from sweeper.desk import Desk
from sweeper.errors import RunFailed
from sweeper.follow import Lanes, Trials, label
from sweeper.journals import STUDY_JOURNAL
from sweeper.lane import LanePool
from sweeper.ledger import Cost
from sweeper.monitor import SEARCH
from sweeper.plan import Plan, artifact_uses
from sweeper.prepared import Prepared
from sweeper.retrainings import Outcomes
from sweeper.store import Record
from sweeper.study import Study
from sweeper.tracking import Tracking
from sweeper.trial import TrialConfig
from sweeper.worker import Job


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

    def __init__(
        self, prepared: Prepared, records: Mapping[str, Record], pool: LanePool, console: Console, tracked: Tracking
    ) -> None:
        self.prepared, self.records, self.pool, self.console = prepared, records, pool, console
        self.tracked = tracked
        self.plan, self.config = prepared.plan, prepared.plan.config
        self.device = harvest.device_of(records.values())

    def cost(self, trial: TrialConfig, train_seconds: float) -> Cost:
        """What a trial alone would have cost."""
        return Cost.alone(train_seconds, artifact_uses(self.plan, trial, self.records))

    def job(self, trial: TrialConfig, seed: int, *, epochs: int | None = None, final: bool = False) -> Job:
        """The job of one training, complete after `epochs` where those are not all of the recipe's."""
        return Job(
            config=trial.model_dump(mode="json"),
            refs=data_refs(self.plan, trial),
            pool=pool_refs(self.plan, trial),
            views=self.config.views,
            view_seed=self.config.seed,
            seed=seed,
            until=epochs,
            final=final,
        )

    def search(self, work: Path) -> Study:
        """Run the search to its end; returns the study."""
        settings, folder = self.config.search, self.prepared.folder
        space = self.prepared.space.space
        book = Study(folder.path / STUDY_JOURNAL, settings, space, self.config.seed, self.prepared.first_points)
        shared = sum(record.charge.seconds for record in self.records.values() if record.charge)
        desk, workers = Desk(book, settings, self.cost, shared), self.pool.plan.workers
        monitor, chance = self.console.monitor, 1 / max(2, len(self.plan.index.class_names))
        with self.console.search(settings.trials, self.device) as view:
            self._take_up(book, view)
            monitor.lanes(self.pool.room)
            follow = Trials(monitor, view, desk, workers=workers, chance=chance, device=self.device)

            def on_event(event: Mapping[str, Any]) -> None:
                follow(event)
                self.tracked(event)

            hooks = search.Hooks(make_job=lambda trial: self.job(trial, self.config.seed), on_event=on_event)
            epochs, rungs = self.prepared.max_epochs, folder.path / "rungs.jsonl"
            ended = search.run(desk, self.pool, epochs, hooks, work, rungs)
        self.console.message(_how_it_ended(ended))
        for line in adaptations.weaker(self.plan, self.records, harvest.candidates(book)):
            self.console.message(line, "yellow")
        return book

    def _take_up(self, book: Study, view: Search) -> None:
        """Count what earlier sessions of the run did."""
        outcomes = {trial.number: trial.user_attrs["outcome"] for trial in book.trials()}
        view.earlier([{"trial": number, **outcome} for number, outcome in outcomes.items()])
        self.tracked.earlier(book.trials())
        for outcome in outcomes.values():
            self.console.monitor.spend(SEARCH, outcome["cost"]["train"], outcome.get("device") or self.device)

    def finalists(self, book: Study) -> list[harvest.Final]:
        """Retrain the front and the arms of the ablation; returns them with what they reached."""
        settings = self.config.finalists
        candidates = harvest.candidates(book)
        if not candidates:
            raise RunFailed(f"search: no trial was completed; {harvest.first_error(book)}")
        num_val = self.plan.index.split_counts()["val"]
        worth = harvest.worth_retraining(candidates, 1 / len(self.plan.index.class_names))
        entries = finalists.select(worth, self.config.search.objectives, settings.count, num_val=num_val)
        if settings.ablate:
            entries += finalists.arms(candidates)
        seeds = [self.config.seed + 1 + i for i in range(settings.seeds)]
        outcomes = Outcomes(self.prepared.folder.path / "finalists")
        names = {
            finalists.job_name(e.config, seed, e.epochs): (f"seed {seed}", label(e.config))
            for e in entries
            for seed in seeds
        }
        total, monitor = len(names), self.console.monitor
        with self.console.stage("finalists", total, "trainings" if total > 1 else "training") as counter:
            follow = Lanes(monitor, self.pool.plan.workers, names.get)
            monitor.lanes(self.pool.room)
            for outcome in filter(None, map(outcomes.get, names)):
                counter.advance(is_new=False)
                counter.spend(outcome["train_seconds"], outcome.get("device") or self.device)

            def count(event: Mapping[str, Any]) -> None:
                follow(event)
                if event["type"] == "end":
                    counter.advance()
                    counter.spend(event.get("train_seconds", 0.0), event.get("device") or self.device)

            raced = finalists.train(
                entries,
                seeds,
                self.pool,
                outcomes,
                lambda trial, seed, epochs: self.job(trial, seed, epochs=epochs, final=True),
                count,
                cost=lambda trial, seconds: self.cost(trial, seconds).total,
                num_val=num_val,
            )
        finals = [
            harvest.Final(entry, finalists.summarise(entry, done.seeds, outcomes), done.seeds, outcomes)
            for entry, done in zip(entries, raced, strict=True)
        ]
        for final, done in zip(finals, raced, strict=True):
            if done.beaten_by is not None:
                rival = f"trial {done.beaten_by.trial}, {label(done.beaten_by.config)}"
                what = f"trial {final.entry.trial}, {label(final.entry.config)}"
                self.console.message(f"finalists: dropped after {len(done.seeds)} seeds: {what}; beaten by {rival}")
        self.console.message(f"winner's curse: {harvest.curse_text(finals)}")
        return finals


def _how_it_ended(ended: search.Ended) -> str:
    busy = f"; lanes busy {100 * ended.busy:.1f}%" if ended.busy is not None else ""
    return f"search: ended by {ended.why}{busy}"
