"""The front again, with several seeds, evaluated once each on the untouched test split, and the arms of the method's
claim.

Configurations are chosen on validation alone. Each training is written down when it ends, so that a run that is killed
goes on with what is missing. The arms keep the student and the recipe of the best finalist that has a teacher and
synthetic images: `distilled` takes the images away, `scratch` the teacher too, `pretrained` is taught on a pool.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from sweeper import pareto
from sweeper.config import Direction, Objective
from sweeper.errors import RunFailed
from sweeper.files import write_atomically
from sweeper.fingerprint import fingerprint
from sweeper.lane import Job, LanePool
from sweeper.trial import NO_TEACHER, LossSection, Pretrain, SyntheticUse, TrialConfig


@dataclass(frozen=True)
class Candidate:
    """A finished trial of the search: its number, resolved configuration and the two objectives."""

    trial: int
    config: TrialConfig
    accuracy_val: float
    gpu_hours: float


@dataclass(frozen=True)
class Entry:
    """A configuration to be retrained: a row of the front or an arm of the ablation, from trial `trial`."""

    role: str
    trial: int
    config: TrialConfig


def on_front(candidates: Sequence[Candidate], objectives: Mapping[Objective, Direction]) -> list[bool]:
    """Which candidates no other one dominates in the searched objectives."""
    if not candidates:
        return []
    values = {"accuracy": lambda c: c.accuracy_val, "gpu_hours": lambda c: c.gpu_hours}
    points = [[values[name](c) for name in objectives] for c in candidates]
    return [bool(x) for x in pareto.front(points, [objectives[name] == "max" for name in objectives])]


def select(candidates: Sequence[Candidate], objectives: Mapping[Objective, Direction], count: int) -> list[Entry]:
    """The `count` most accurate configurations of the front; equal configurations count once."""
    front = [c for c, is_on in zip(candidates, on_front(candidates, objectives), strict=True) if is_on]
    chosen: dict[str, Entry] = {}
    for candidate in sorted(front, key=lambda c: (-c.accuracy_val, c.gpu_hours, c.trial)):
        chosen.setdefault(_key(candidate.config), Entry("front", candidate.trial, candidate.config))
    return list(chosen.values())[:count]


def arms(candidates: Sequence[Candidate]) -> list[Entry]:
    """The ablation's arms, most complete first; fewer where no trial had a teacher, synthetic images or a pool.

    `distilled` and `scratch` keep the recipe of the best trial that was taught on the task; `pretrained` is the best
    trial that was taught on a pool, whose recipe `scratch` keeps where no other was taught.
    """

    def best(of: Sequence[Candidate]) -> Candidate:
        return max(of, key=lambda c: (c.accuracy_val, -c.gpu_hours, -c.trial))

    pretrained = [c for c in candidates if c.config.pretraining is not None]
    taught = [c for c in candidates if c.config.teacher != NO_TEACHER and c.config.pretraining is None]
    both = [c for c in taught if c.config.synthetic.ratio > 0]
    found = []
    if both:
        found.append(Entry("distilled+synthetic", best(both).trial, best(both).config))
    if taught:
        chosen = best(both or taught)
        distilled = chosen.config.model_copy(update={"synthetic": SyntheticUse()})
        found.append(Entry("distilled", chosen.trial, distilled))
    if pretrained:
        found.append(Entry("pretrained", best(pretrained).trial, best(pretrained).config))
    if found:
        model = found[-1] if not taught else next(entry for entry in found if entry.role == "distilled")
        nothing = {"teacher": NO_TEACHER, "loss": LossSection(), "synthetic": SyntheticUse(), "pretrain": Pretrain()}
        found.append(Entry("scratch", model.trial, model.config.model_copy(update=nothing)))
    return found


def _key(config: TrialConfig) -> str:
    return fingerprint(config)[:12]


def job_name(config: TrialConfig, seed: int) -> str:
    """A retraining's name, also that of its files: equal configurations share their trainings."""
    return f"final-{_key(config)}-seed{seed}"


class Outcomes:
    """Finished retrainings of a run on disk: one JSON file and one model folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> dict[str, Any] | None:
        """The outcome of a retraining that has ended."""
        path = self.folder / f"{name}.json"
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def put(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Write the model first and the outcome last: an outcome that is there is whole."""
        for file, data in outcome.get("model", {}).items():
            write_atomically(self.folder / name / file, data)
        kept = {key: value for key, value in outcome.items() if key != "model"}
        write_atomically(self.folder / f"{name}.json", json.dumps(kept, sort_keys=True).encode())

    def model(self, name: str) -> dict[str, bytes]:
        """The exported files of a retraining's student."""
        paths = sorted((self.folder / name).iterdir())  # hidden ones are what a kill left half-written
        return {path.name: path.read_bytes() for path in paths if not path.name.startswith(".")}


def train(
    entries: Sequence[Entry],
    seeds: Sequence[int],
    pool: LanePool,
    outcomes: Outcomes,
    make_job: Callable[[TrialConfig, int], Job],
    on_event: Callable[[Mapping[str, Any]], None],
) -> None:
    """Retrain every entry with every seed on the lanes; those with an outcome are not trained again.

    Raises:
        RunFailed: a retraining failed.
    """
    jobs = {job_name(e.config, seed): (e.config, seed) for e in entries for seed in seeds}
    open_jobs = [name for name in jobs if outcomes.get(name) is None]
    seen = len(ray.get(pool.mailbox.events_since.remote(0)))
    for name in open_jobs:
        pool.submit(name, make_job(*jobs[name]))
    for name in open_jobs:
        while True:
            message = ray.get(pool.mailbox.next_message.remote(name))
            events = ray.get(pool.mailbox.events_since.remote(seen))
            seen += len(events)
            for event in events:
                on_event(event)
            pool.check()
            if message["type"] == "end":
                break
        if message["state"] != "completed":
            raise RunFailed(f"finalist {name}: {message['error'] or message['state']}; run again to try it once more")
        outcomes.put(name, message)


def pretrain_seconds(outcome: Mapping[str, Any]) -> float:
    """Of an outcome's training, the part that was pre-training; 0 in outcomes that were written before it existed."""
    return float(outcome.get("pretrain_seconds", 0.0))


@dataclass(frozen=True)
class Summary:
    """Means over an entry's seeds; `model` are the files of the seed that was best on validation."""

    accuracy_val: float
    accuracies_test: tuple[float, ...]
    train_seconds: float
    pretrain_seconds: float  # of `train_seconds`
    epochs: int
    params: int
    model_seed: int
    model_accuracy_test: float


def summarise(entry: Entry, seeds: Sequence[int], outcomes: Outcomes) -> Summary:
    """Gather an entry's outcomes, all of which must be there."""
    found = []
    for seed in seeds:
        outcome = outcomes.get(job_name(entry.config, seed))
        assert outcome is not None, "summarise comes after train"
        found.append((seed, outcome))
    best_seed, best = max(found, key=lambda item: (item[1]["accuracy_val"], -item[0]))
    return Summary(
        accuracy_val=math.fsum(o["accuracy_val"] for _, o in found) / len(found),
        accuracies_test=tuple(o["accuracy_test"] for _, o in found),
        train_seconds=math.fsum(o["train_seconds"] for _, o in found) / len(found),
        pretrain_seconds=math.fsum(pretrain_seconds(o) for _, o in found) / len(found),
        epochs=best["epochs"],
        params=best["params"],
        model_seed=best_seed,
        model_accuracy_test=best["accuracy_test"],
    )
