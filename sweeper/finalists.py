"""The front again with several seeds, evaluated once each on the untouched test split, and the arms of the claim.

Configurations are chosen and dropped (`racing`) on validation alone. Each training is written down when it ends, so
that a run that is killed goes on with what is missing. The arms keep the student and the recipe of the best finalist
that has a teacher and synthetic images: `distilled` takes the images away, `scratch` the teacher too, `pretrained` is
taught on a pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from sweeper import interrupt, pareto
from sweeper.config import Direction, Objective
from sweeper.errors import RunFailed
from sweeper.fingerprint import fingerprint
from sweeper.lane import LanePool
from sweeper.racing import Race, Run, near_ties, spread
from sweeper.retrainings import Outcomes
from sweeper.trial import NO_TEACHER, LossSection, Pretrain, SyntheticUse, TrialConfig
from sweeper.worker import Job


@dataclass(frozen=True)
class Candidate:
    """A trial of the search that ends after `epochs`, its schedule unchanged: one a trial, or one an epoch."""

    trial: int
    config: TrialConfig
    accuracy_val: float
    gpu_hours: float
    epochs: int


@dataclass(frozen=True)
class Entry:
    """A configuration to be retrained for `epochs`: a row of the front, or an arm of the ablation, from `trial`."""

    role: str
    trial: int
    config: TrialConfig
    epochs: int
    searched_accuracy: float = math.nan  # on validation, of a row of the front; an arm need not have been searched


def on_front(candidates: Sequence[Candidate], objectives: Mapping[Objective, Direction]) -> list[bool]:
    """Which candidates no other one dominates in the searched objectives."""
    if not candidates:
        return []
    values = {"accuracy": lambda c: c.accuracy_val, "gpu_hours": lambda c: c.gpu_hours}
    points = [[values[name](c) for name in objectives] for c in candidates]
    return [bool(x) for x in pareto.front(points, [objectives[name] == "max" for name in objectives])]


def select(
    candidates: Sequence[Candidate], objectives: Mapping[Objective, Direction], count: int, *, num_val: int
) -> list[Entry]:
    """`count` candidates: of the front, most accurate first, then near-ties; equal trainings count once.

    A larger front is thinned to its most accurate point and those that cover the most of the plane (`racing.spread`). A
    third of the places is for near-ties, most accurate first (`racing.near_ties` on `num_val` images): of hundreds of
    candidates the one that leads was lucky too. Of a configuration that has a place no other epoch is a near-tie.
    """
    ranked = sorted(candidates, key=_best_first)
    front: dict[str, Candidate] = {}
    for candidate, is_on in zip(ranked, on_front(ranked, objectives), strict=True):
        if is_on:
            front.setdefault(_stem(candidate.config, candidate.epochs), candidate)

    def hours(of: Sequence[Candidate]) -> list[float]:
        return [c.gpu_hours if "gpu_hours" in objectives else 0.0 for c in of]

    near: list[Candidate] = []
    if "accuracy" in objectives:
        near = [ranked[i] for i in sorted(near_ties([c.accuracy_val for c in ranked], hours(ranked), num_val))]
    points = list(front.values())
    accuracies, costs = [c.accuracy_val for c in points], hours(points)
    chosen = [points[i] for i in spread(accuracies, costs, count - count // 3)]
    if (few := len(_others(chosen, near))) < count // 3:
        chosen = [points[i] for i in spread(accuracies, costs, count - few)]
    chosen = [*chosen, *_others(chosen, near)][:count]
    return [Entry("front", c.trial, c.config, c.epochs, c.accuracy_val) for c in chosen]


def _best_first(candidate: Candidate) -> tuple[float, int, int]:
    """Of equals the one with fewer epochs: what the clock says has no part in what is retrained, unless it is asked."""
    return (-candidate.accuracy_val, candidate.epochs, candidate.trial)


def _others(chosen: Sequence[Candidate], more: Sequence[Candidate]) -> list[Candidate]:
    """The first of each further configuration."""
    first: dict[int, Candidate] = {}
    for candidate in more:
        first.setdefault(candidate.trial, candidate)
    others: dict[str, Candidate] = {}
    for candidate in first.values():
        others.setdefault(_key(candidate.config), candidate)
    known = {_key(c.config) for c in chosen}
    return [candidate for key, candidate in others.items() if key not in known]


def arms(candidates: Sequence[Candidate]) -> list[Entry]:
    """The ablation's arms, most complete first; fewer where no trial had what an arm is about.

    `distilled` and `scratch` keep the recipe of the best candidate that was taught on the task, and its epochs;
    `pretrained` is the best that was taught on a pool, whose recipe `scratch` keeps where no other was taught;
    `finetuned` the best that began from pre-trained weights and had no teacher, of the same student where there is one.
    """

    def best(role: str, of: Sequence[Candidate]) -> Entry:
        found = min(of, key=_best_first)
        return Entry(role, found.trial, found.config, found.epochs)

    pretrained = [c for c in candidates if c.config.pretraining is not None]
    taught = [c for c in candidates if c.config.teacher != NO_TEACHER and c.config.pretraining is None]
    both = [c for c in taught if c.config.synthetic.ratio > 0]
    found = []
    if both:
        found.append(best("distilled+synthetic", both))
    if taught:
        model = best("distilled", both or taught)
        model = replace(model, config=model.config.model_copy(update={"synthetic": SyntheticUse()}))
        found.append(model)
    if pretrained:
        found.append(best("pretrained", pretrained))
    if found:
        model = model if taught else found[-1]
        student = model.config.student
        tuned = [c for c in candidates if is_finetuned(c.config)]
        alike = [c for c in tuned if c.config.student.model == student.model]
        found += [best("finetuned", alike or tuned)] if tuned else []
        nothing = {"teacher": NO_TEACHER, "loss": LossSection(), "synthetic": SyntheticUse(), "pretrain": Pretrain()}
        nothing |= {"student": student.model_copy(update={"init": "random"})}
        found.append(replace(model, role="scratch", config=model.config.model_copy(update=nothing)))
    return found


def is_finetuned(config: TrialConfig) -> bool:
    """The baseline of every saving: pre-trained weights, trained on the task's own images without a teacher."""
    alone = config.taught_by == NO_TEACHER and not config.synthetic.ratio
    return alone and config.student.init == "pretrained"


def _key(config: TrialConfig) -> str:
    return fingerprint(config)[:12]


def _stem(config: TrialConfig, epochs: int) -> str:
    part = "" if epochs == config.train.epochs else f"-e{epochs}"
    return f"final-{_key(config)}{part}"


def job_name(config: TrialConfig, seed: int, epochs: int) -> str:
    """A retraining's name, also that of its files: equal trainings are done once."""
    return f"{_stem(config, epochs)}-seed{seed}"


@dataclass(frozen=True)
class Raced:
    """The seeds that an entry was trained with, and who beat it before it had all; None where nobody did."""

    seeds: tuple[int, ...]
    beaten_by: Entry | None


def train(
    entries: Sequence[Entry],
    seeds: Sequence[int],
    pool: LanePool,
    outcomes: Outcomes,
    make_job: Callable[[TrialConfig, int, int], Job],
    on_event: Callable[[Mapping[str, Any]], None],
    *,
    cost: Callable[[TrialConfig, float], float],
    num_val: int,
) -> list[Raced]:
    """Retrain the entries on the lanes, seed by seed, until all seeds are done or a row of the front is beaten.

    Beaten is who is less accurate on validation, with `racing.CONFIDENCE`, than another entry that costs no more. What
    an entry costs is what its row will say: the shared artifacts and the mean device-seconds of its retrainings. The
    search's own figure is left out: a lucky one is what brought the entry here. Arms are never dropped, nor are rows
    that are one training with an arm. A lane has always a job waiting; one that turns out not to be wanted ends all the
    same and counts as a seed. What has an outcome is not trained again. Returns one `Raced` an entry.

    Args:
        make_job: of a configuration, a seed and the number of epochs after which the training ends.
        cost: what a configuration costs alone with so many device-seconds of training, in any unit.
        num_val: images of the validation split.

    Raises:
        RunFailed: a retraining failed.
    """
    stems = [_stem(e.config, e.epochs) for e in entries]
    racers = dict(zip(reversed(stems), reversed(entries), strict=True))  # of equal ones the first
    kept = {stem for stem, e in zip(stems, entries, strict=True) if e.role != "front"}
    race = Race({stem: stem not in kept for stem in dict.fromkeys(stems)}, seeds, resolution=1 / num_val)
    runs = {f"{stem}-seed{seed}": (stem, seed) for seed in seeds for stem in racers}

    def record(name: str, outcome: Mapping[str, Any]) -> None:
        stem, seed = runs[name]
        race.record(stem, seed, Run(outcome["accuracy_val"], cost(racers[stem].config, outcome["train_seconds"])))

    def jobs() -> Iterator[tuple[str, Job]]:
        while (taken := race.take()) is not None:
            stem, seed = taken
            yield f"{stem}-seed{seed}", make_job(racers[stem].config, seed, racers[stem].epochs)

    for name in runs:
        if (outcome := outcomes.get(name)) is not None:
            record(name, outcome)
    pool.expect(len(runs) - len(race.runs))
    for name, ended in _run(jobs(), pool, on_event):
        outcomes.put(name, ended)
        record(name, ended)
        pool.expect(len(runs) - len(race.runs))
    done = {stem: tuple(seed for seed in seeds if (stem, seed) in race.runs) for stem in racers}
    return [Raced(done[stem], racers.get(race.beaten_by.get(stem, ""))) for stem in stems]


def _run(
    jobs: Iterator[tuple[str, Job]], pool: LanePool, on_event: Callable[[Mapping[str, Any]], None]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each job as it ends; there is always one more than there are lanes, as long as `jobs` gives any."""
    seen = len(ray.get(pool.mailbox.events_since.remote(0)))
    waiting: dict[Any, str] = {}
    while True:
        interrupt.look()
        while len(waiting) <= pool.room and (given := next(jobs, None)) is not None:
            name, job = given
            pool.submit(name, job)
            pool.check()  # after it: lanes that give up later than this say so to all who wait
            waiting[pool.mailbox.next_message.remote(name)] = name
        if not waiting:
            return
        (ready,), _ = ray.wait(list(waiting))
        name, message = waiting.pop(ready), ray.get(ready)
        events = ray.get(pool.mailbox.events_since.remote(seen))
        seen += len(events)
        for event in events:
            on_event(event)
        pool.check()
        if message["type"] != "end":
            waiting[pool.mailbox.next_message.remote(name)] = name
        elif message["state"] != "completed":
            raise RunFailed(f"finalist {name}: {message['error'] or message['state']}; run again to try it once more")
        else:
            yield name, message


def pretrain_seconds(outcome: Mapping[str, Any]) -> float:
    """Of an outcome's training, the part that was pre-training; 0 in outcomes that were written before it existed."""
    return float(outcome.get("pretrain_seconds", 0.0))


@dataclass(frozen=True)
class Summary:
    """Means over an entry's seeds; `model` are the files of the seed that was best on validation."""

    accuracy_val: float
    accuracies_test: tuple[float, ...]
    train_seconds: float
    trainings: tuple[tuple[str | None, float], ...]  # device and device-seconds of each
    pretrain_seconds: float  # of `train_seconds`
    epochs: int
    params: int
    model_seed: int
    model_accuracy_test: float


def summarise(entry: Entry, seeds: Sequence[int], outcomes: Outcomes) -> Summary:
    """Gather an entry's outcomes, all of which must be there."""
    found = []
    for seed in seeds:
        outcome = outcomes.get(job_name(entry.config, seed, entry.epochs))
        assert outcome is not None, "summarise comes after train"
        found.append((seed, outcome))
    best_seed, best = max(found, key=lambda item: (item[1]["accuracy_val"], -item[0]))
    return Summary(
        accuracy_val=math.fsum(o["accuracy_val"] for _, o in found) / len(found),
        accuracies_test=tuple(o["accuracy_test"] for _, o in found),
        train_seconds=math.fsum(o["train_seconds"] for _, o in found) / len(found),
        trainings=tuple((o.get("device"), o["train_seconds"]) for _, o in found),
        pretrain_seconds=math.fsum(pretrain_seconds(o) for _, o in found) / len(found),
        epochs=best["epochs"],
        params=best["params"],
        model_seed=best_seed,
        model_accuracy_test=best["accuracy_test"],
    )
