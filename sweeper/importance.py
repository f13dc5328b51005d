"""Which hyperparameters mattered, for accuracy and for cost: conditional PED-ANOVA over a search's trials.

Watanabe et al. 2023 (arXiv 2304.10255) ask how differently a parameter is spread among the best trials and among all of
them; the conditional form (arXiv 2601.20800, Optuna's since 5.0) compares a leaf with `when` inside the trials that had
it, so that neither a sentinel value nor the intersection of all trials is needed. What it finds in pure noise is taken
off: the same is computed with the outcomes shuffled among the trials, and where no parameter stands out from that,
nothing is claimed.

A stopped trial takes part with the accuracy that it had, which it would hardly have fallen below: it can be among the
best, and otherwise counts as one that was not. Left out, the survivors alone would make a parameter look harmless whose
bad values were all stopped. Its cost is the projected one of the full run. Failed trials are left out: many fail for
reasons that are no parameter's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from sweeper.ledger import Cost
from sweeper.rows import Record
from sweeper.space import Space
from sweeper.study import whole_training

optuna.logging.set_verbosity(optuna.logging.ERROR)

MIN_TRIALS = 8
MAX_TRIALS = 500  # of more, so many are drawn: the shares hardly change, and the time grows with them
BEST_SHARE = 0.25  # of the trials; Optuna's tenth are two or three of a small run
MIN_BEST = 8
NUM_SHUFFLES = 39
LEVEL = 0.05  # how often pure noise may pass for a finding


@dataclass(frozen=True)
class Findings:
    """Records as of `importances`, and for each objective without any the reason, as a clause for people."""

    records: list[Record]
    reasons: dict[str, str]


def importances(trials: Sequence[FrozenTrial], space: Space) -> list[Record]:
    """How much each leaf of the space mattered for being among the most accurate, and among the cheapest, trials.

    Args:
        trials: of the search, with `outcome` among their user attributes (`Study.trials`).
        space: names the leaves and gives the order of equal ones.

    Returns:
        One record an objective and leaf, the most important first: objective (accuracy | gpu_hours), parameter (dotted
        path), importance (sums to 1 over an objective's records), trials (how many of those assessed had it active).
        Nothing for an objective where less than `MIN_TRIALS` trials ended, all are equal or no leaf stands out from
        chance. Equal trials in equal order give equal records.
    """
    return assess(trials, space).records


def assess(trials: Sequence[FrozenTrial], space: Space) -> Findings:
    """As `importances`, with reasons for what is missing."""
    ended = [t for t in trials if _has_ended(t.user_attrs["outcome"])]
    records: list[Record] = []
    reasons: dict[str, str] = {}
    for objective, value_of in _VALUES.items():
        found = _assess(ended, [value_of(t.user_attrs["outcome"]) for t in ended], list(space.domains))
        if isinstance(found, str):
            reasons[objective] = found
        else:
            records += [{"objective": objective, **record} for record in found]
    return Findings(records, reasons)


def projected_hours(outcome: Mapping[str, Any]) -> float:
    """Device-hours of the full run: a stopped trial's so far would look cheap."""
    cost = Cost(**outcome["cost"])
    return replace(cost, train=whole_training(outcome)).as_hours()["gpu_hours"]


# Less is better, as the evaluator has it.
_VALUES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "accuracy": lambda outcome: -float(outcome["accuracy_val"]),
    "gpu_hours": projected_hours,
}


def _has_ended(outcome: Mapping[str, Any]) -> bool:
    accuracy = outcome["accuracy_val"]
    return outcome["state"] != "failed" and outcome["epochs"] > 0 and accuracy is not None and math.isfinite(accuracy)


def _assess(trials: Sequence[FrozenTrial], values: Sequence[float], paths: Sequence[str]) -> list[Record] | str:
    if len(trials) < MIN_TRIALS:
        return f"{len(trials)} trials ended, too few to tell ({MIN_TRIALS} are needed)"
    draw = np.random.default_rng(len(trials))
    if len(trials) > MAX_TRIALS:
        kept = np.sort(draw.choice(len(trials), MAX_TRIALS, replace=False))
        trials, values = [trials[i] for i in kept], [values[i] for i in kept]
    counts = {path: sum(path in t.params for t in trials) for path in paths}
    names = [path for path in paths if counts[path]]
    if not names or len(set(values)) == 1:
        return "all trials are equal in it" if names else "nothing was varied"
    measure = _evaluator(trials, names)
    found = measure(np.array(values))
    chance_SP = np.array([measure(draw.permutation(values)) for _ in range(NUM_SHUFFLES)])
    usual, spread = chance_SP.mean(axis=0), chance_SP.std(axis=0) + 1e-12
    as_strong = int((((chance_SP - usual) / spread).max(axis=1) >= ((found - usual) / spread).max()).sum())
    beyond = np.maximum(found - usual, 0.0)
    if (1 + as_strong) / (1 + NUM_SHUFFLES) > LEVEL or not beyond.any():
        return f"no parameter stands out from chance over {len(trials)} trials"
    shares = beyond / beyond.sum()
    order = sorted(range(len(names)), key=lambda i: (-shares[i], i))
    return [{"parameter": names[i], "importance": float(shares[i]), "trials": counts[names[i]]} for i in order]


def _evaluator(trials: Sequence[FrozenTrial], names: Sequence[str]) -> Callable[[NDArray[np.float64]], NDArray[Any]]:
    """Values of the trials (less is better) -> how much each name mattered, not normalised."""
    study = optuna.create_study()
    study.add_trials([create_trial(params=t.params, distributions=t.distributions, value=0.0) for t in trials])
    share = min(0.5, max(BEST_SHARE, MIN_BEST / len(trials)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)

    def measure(values: NDArray[np.float64]) -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that less is better, and that a branch has few trials: both are known
            found = get_param_importances(
                study,
                evaluator=evaluator,
                params=list(names),
                target=lambda trial: float(values[trial.number]),
                normalize=False,
            )
        return np.array([found[name] for name in names])

    return measure
