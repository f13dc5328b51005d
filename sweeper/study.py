"""The study of a run: Optuna's ask and tell over a journal on disk, which is the run's memory.

Every trial's configuration is written down before it starts and its outcome before it is told, so that a run that is
killed at any moment goes on: finished trials stand, and those that were running are trained again under their numbers.
A stopped trial is told with its values and a violated constraint, not as complete with an immature accuracy: it informs
the sampler and stays out of the front. (`OptunaSearch` loses this; a pruned trial without values fills TPE's good set.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeper.config import SearchConfig
from sweeper.files import mend_tail
from sweeper.fingerprint import fingerprint
from sweeper.ledger import Cost
from sweeper.points import Point, distinct
from sweeper.samplers import Untried, as_asked, make_sampler, quasi_random, suggest
from sweeper.space import Space
from sweeper.trial import TrialConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STUDY_NAME = "sweep"
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
EARLY_STOPPED = "early_stopped"
FAILED = 2.0  # above any share of epochs


class Study:
    """One run's trials, on disk. Used from one thread of one process; the run's lock sees to the latter.

    Args:
        first: points that are tried before all others, in this order (`points`).
    """

    def __init__(
        self, journal: Path, config: SearchConfig, space: Space, seed: int, first: Sequence[Point] = ()
    ) -> None:
        mend_tail(journal)
        Path(f"{journal}.lock").unlink(missing_ok=True)  # left by a killed driver; the run's own lock is held
        backend = JournalFileBackend(str(journal))
        self.config, self.space, self.seed = config, space, seed
        self.objectives = list(config.objectives)
        is_random = config.sampler == "random"
        self.planned = [*distinct(first), *([] if is_random else quasi_random(space, config.startup, seed))]
        self.study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=optuna.storages.JournalStorage(backend),
            directions=[DIRECTIONS[config.objectives[name]] for name in self.objectives],
            sampler=make_sampler(config, seed, 0),
            load_if_exists=True,
        )
        earlier = self.study.get_trials(deepcopy=False)
        self.asked = len(earlier)
        self.handles: dict[int, optuna.Trial] = {}  # of trials that are open
        configs = [t.user_attrs["config"] for t in earlier if "config" in t.user_attrs]
        self.tried = {fingerprint(TrialConfig.model_validate(config)) for config in configs}

    def trials(self) -> list[FrozenTrial]:
        """All trials that have an outcome, by number."""
        return [t for t in self.study.get_trials(deepcopy=False) if "outcome" in t.user_attrs]

    def interrupted(self) -> list[tuple[int, TrialConfig]]:
        """Trials that were running when the run was killed, to be trained again; also tells what was not yet told."""
        again = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "outcome" in trial.user_attrs:
                self._tell(trial.number, trial.user_attrs["outcome"])
            elif "config" in trial.user_attrs:
                again.append((trial.number, TrialConfig.model_validate(trial.user_attrs["config"])))
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
        return again

    def ask(self) -> tuple[int, TrialConfig]:
        """A new trial: its number and its resolved configuration, written down."""
        number = self.asked
        sampler = make_sampler(self.config, self.seed, number)
        if number < len(self.planned):
            domains = self.space.domains
            fixed = {path: as_asked(domains[path], value) for path, value in self.planned[number].items()}
            sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
        elif self.config.sampler != "random":
            sampler = Untried(sampler, self.space, self._was_tried, number)
        self.study.sampler = sampler
        trial = self.study.ask()
        point = self.space.sample(lambda path, domain: suggest(trial, path, domain))
        config = TrialConfig.model_validate(point).resolved()
        trial.set_user_attr("config", config.model_dump(mode="json"))
        self.asked, self.handles[trial.number] = number + 1, trial
        self.tried.add(fingerprint(config))
        return trial.number, config

    def _was_tried(self, point: Mapping[str, Any]) -> bool:
        return fingerprint(TrialConfig.model_validate(point).resolved()) in self.tried

    def withdraw(self, number: int) -> None:
        """A trial that was asked for and never begun: it has no outcome, and no sampler is told of it."""
        self.study.tell(self._handle(number), state=TrialState.FAIL)
        self.handles.pop(number)

    def record(self, number: int, outcome: dict[str, Any]) -> None:
        """Write an outcome down, then tell the sampler.

        Args:
            outcome: state, error, epochs, num_epochs, accuracy_val, cost (`Cost` as a dict), pretrain_seconds (of
                cost.train), params, curve.
        """
        self._handle(number).set_user_attr("outcome", outcome)
        self._tell(number, outcome)
        self.handles.pop(number)

    def _handle(self, number: int) -> optuna.Trial:
        """A trial that is open; Optuna's own way to it looks through all trials."""
        if number not in self.handles:
            self.handles[number] = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        return self.handles[number]

    def _tell(self, number: int, outcome: dict[str, Any]) -> None:
        """Tell the sampler the two values, and how far they are from what was asked for.

        The violation is 0 for a completed trial, the share of its epochs that a stopped one was not given, and
        `FAILED` for one that failed, whose accuracy is told as 0: with it the sampler learns where not to look.
        """
        accuracy = outcome["accuracy_val"]
        failed = outcome["state"] == "failed" or accuracy is None or not math.isfinite(accuracy)
        left = 1 - outcome["epochs"] / outcome["num_epochs"]
        cost = Cost(**outcome["cost"])
        if left > 0 and outcome["epochs"]:
            # The cost that it would have had: so far alone, a trial that was cut short would look cheap.
            cost = replace(cost, train=whole_training(outcome))
        violation = FAILED if failed else left if outcome["state"] == "stopped" else 0.0
        handle = self._handle(number)
        if EARLY_STOPPED not in handle.constraints:  # set already where the run was killed just before `tell`
            handle.set_constraint(EARLY_STOPPED, violation)
        values = {"accuracy": 0.0 if failed else accuracy, "gpu_hours": cost.as_hours()["gpu_hours"]}
        self.study.tell(handle, [values[name] for name in self.objectives])


def whole_training(outcome: Mapping[str, Any]) -> float:
    """Device-seconds that a trial which was cut short would have trained, at the pace that it had."""
    first = outcome.get("pretrain_seconds", 0.0)  # paid once, whenever it stops
    return float(first + (outcome["cost"]["train"] - first) * outcome["num_epochs"] / max(1, outcome["epochs"]))


def spent_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Device-seconds of training that the trials' outcomes hold."""
    return math.fsum(t.user_attrs["outcome"]["cost"]["train"] for t in trials)


def clock_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Seconds on the clock during which at least one of the trials ran: what earlier sessions of a run took."""
    spans = sorted(
        (t.datetime_start.timestamp(), t.datetime_complete.timestamp())
        for t in trials
        if t.datetime_start is not None and t.datetime_complete is not None
    )
    total, until = 0.0, -math.inf
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
