"""What a row saves against pre-training its student and fine-tuning it (METHOD: Farhat & Chen 2024, arXiv 2404.03263).

    saving = 1 - cost of the row / (cost of the pre-trained weights + cost of fine-tuning them)

What the weights cost is given in the file under `pretrained:` and is charged in a column of its own, `gpu_hours_init`;
fine-tuning is the search's own best trial of that student that began from them without a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeper.config import PretrainedCost
from sweeper.finalists import is_finetuned
from sweeper.ledger import SECONDS_PER_HOUR, Cost
from sweeper.plan import Plan
from sweeper.trial import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training as it was: its device-seconds on the task alone, and what it would have cost from nothing."""

    config: TrialConfig
    epochs: int
    task_seconds: float
    cost: Cost
    accuracy_val: float


class Savings:
    """Columns beside the contract's for a space that has `pretrained:`; none for others.

    Args:
        trials: the search's, among them those that were fine-tuned.
    """

    def __init__(self, plan: Plan, trials: Iterable[Training]) -> None:
        self.plan = plan
        self.costs: Mapping[str, PretrainedCost] = plan.config.pretrained
        best: dict[str, Training] = {}
        for trial in trials:
            model = trial.config.student.model
            known = is_finetuned(trial.config) and trial.accuracy_val >= 0 and model in self.costs
            if known and (model not in best or trial.accuracy_val > best[model].accuracy_val):
                best[model] = trial
        self.baselines = {model: self._init_hours(one) + _hours(one) for model, one in best.items()}

    def columns(self, training: Training) -> dict[str, float]:
        """`gpu_hours_init` (0 from random weights, NaN where the file does not say) and `saving` (NaN if unknown)."""
        if not self.costs:
            return {}
        init = self._init_hours(training)
        baseline = self.baselines.get(training.config.student.model, math.nan)
        return {"gpu_hours_init": init, "saving": 1 - (_hours(training) + init) / baseline}

    def _init_hours(self, training: Training) -> float:
        config = training.config
        if config.student.init != "pretrained":
            return 0.0
        if config.student.model not in self.costs:
            return math.nan
        epoch = config.train.epoch_size or self.plan.num_train + self.plan.num_synthetic(config)
        return self.costs[config.student.model].hours(training.task_seconds / max(1, training.epochs * epoch))


def _hours(training: Training) -> float:
    return training.cost.total / SECONDS_PER_HOUR
