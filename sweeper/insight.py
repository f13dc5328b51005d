"""What a finished search tells besides its front: what mattered, how soon it was good, whether its rungs were right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from sweeper import registry
from sweeper.config import SearchConfig
from sweeper.desk import candidates_of
from sweeper.importance import assess
from sweeper.progress import Point, hypervolume_curve
from sweeper.rank_agreement import rank_agreement
from sweeper.results import RunFolder
from sweeper.rows import Record
from sweeper.study import Study
from sweeper.trial import most_epochs


def write(folder: RunFolder, book: Study, *, num_classes: int, shared_seconds: float) -> str:
    """Write importance, hypervolume over device time, and the rungs' agreement with the end.

    Returns:
        Why there is no importance for an objective, in a sentence; nothing where there is.

    Args:
        num_classes: K, for the chance level 1 / K.
        shared_seconds: device-seconds of all shared artifacts.
    """
    trials = book.trials()
    found = assess(trials, book.space)
    folder.write_importance(found.records)
    points = _points(trials, book.config.front)
    chance = 1 / max(2, num_classes)
    folder.write_hypervolume(hypervolume_curve(points, reference_accuracy=chance, shared_seconds=shared_seconds))
    folder.write_rungs(rung_records(trials, book.config, most_epochs(book.space.corners())))
    return " ".join(f"For {objective}: {reason}." for objective, reason in found.reasons.items())


def _points(trials: Sequence[FrozenTrial], front: str) -> list[Point]:
    """Each candidate with the device-seconds of training that the search had spent, one trial after the other.

    Lanes train several at a time; a trial counts as a whole when it ends, whatever began before it.
    """
    found: list[Point] = []
    spent = 0.0
    for trial in sorted(trials, key=lambda t: (t.datetime_complete is None, t.datetime_complete, t.number)):
        outcome = trial.user_attrs["outcome"]
        seconds = {int(row[0]): row[3] for row in outcome["curve"]}
        candidates = candidates_of(front, outcome)
        found += [(spent + seconds[epoch], accuracy, hours) for epoch, accuracy, hours in candidates]
        spent += outcome["cost"]["train"]
    return [*found, (spent, math.nan, math.nan)] if found else []  # what was spent after the last candidate


def rung_records(trials: Sequence[FrozenTrial], config: SearchConfig, max_epochs: int) -> list[Record]:
    """rung, epochs, trials and spearman of each rung in epochs; none for a scheduler without such.

    Args:
        max_epochs: the most epochs of any trial of the space.
    """
    scheduler: Any = config.scheduler
    levels = getattr(registry.load("schedulers", scheduler.kind), "levels", None)
    if levels is None or getattr(scheduler, "unit", "epochs") != "epochs":
        return []
    outcomes = [(t.number, t.user_attrs["outcome"]) for t in trials]
    curves = {str(number): o["curve"] for number, o in outcomes if o["state"] == "completed"}
    found = rank_agreement(curves, levels(scheduler, max_epochs))
    return [
        {"rung": rung, "epochs": int(level), "trials": agreement.num_trials, "spearman": agreement.correlation}
        for rung, (level, agreement) in enumerate(sorted(found.items()), start=1)
    ]
