"""Each teacher with its accuracy, what its adaptation and its cached targets cost, and how often the cache was read.

What the cache saved follows from it: a live teacher would have seen every image that a training read, at the seconds a
view that filling the cache took.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sweeper.plan import Plan
from sweeper.rows import Record
from sweeper.store import Record as Artifact
from sweeper.trial import TrainConfig, TrialConfig


def teachers(
    plan: Plan, artifacts: Mapping[str, Artifact], trainings: Iterable[tuple[TrialConfig, int]]
) -> list[Record]:
    """Records of teachers.parquet, one a teacher that was adapted.

    Args:
        trainings: configuration and epochs on the task of each one, of the search and of the finalists.
    """
    reads = dict.fromkeys(plan.adapt, 0)
    for config, epochs in trainings:
        for member, count in _reads(plan, config, epochs):
            reads[member] += count
    found = []
    for name, item in plan.adapt.items():
        adapted = artifacts[item.key]
        cached = [artifacts[target.key].charge for (asked, _), target in plan.targets.items() if asked == name]
        charges = [charge for charge in cached if charge is not None]
        teacher: Any = plan.config.teachers[name]
        found.append(
            {
                "teacher": name,
                "model": getattr(teacher, "model", None) or getattr(teacher, "weights", teacher.kind),
                "adapt": adapted.meta["adapt"],
                "accuracy_val": float(adapted.meta["accuracy_val"]),
                "seconds_adapt": adapted.charge.seconds if adapted.charge else None,
                "seconds_targets": math.fsum(charge.seconds for charge in charges),
                "views_cached": sum(charge.units for charge in charges),
                "views_read": reads[name],
                "device": adapted.charge.device if adapted.charge else None,
            }
        )
    return found


def _reads(plan: Plan, config: TrialConfig, epochs: int) -> Iterable[tuple[str, int]]:
    """Teacher and images that a training asked its cached targets about, its pre-training's too."""
    first = config.pretraining
    if first is not None and not first.is_online:
        pool = plan.pool_indexes[config.pretrain.pool].split_counts()["train"]
        for member in plan.config.members(first.teacher):
            yield member, first.train.epochs * _epoch_images(first.train, pool)
    if not config.is_online:
        images = _epoch_images(config.train, plan.num_train + plan.num_synthetic(config))
        for member in plan.config.members(config.teacher):
            yield member, epochs * images


def _epoch_images(recipe: TrainConfig, num_images: int) -> int:
    return recipe.batch_size * recipe.steps_per_epoch(num_images)
