"""The study of a run: Optuna's ask and tell over a journal on disk, which is the run's memory.

Every trial's configuration is written down before it starts and its outcome before it is told, so that a run that is
killed at any moment goes on: finished trials stand, and those that were running are trained again under their numbers.
It is the record alone; samplers are asked in memory (`proposals`). A stopped trial is told with its values and a
violated constraint, not as complete with an immature accuracy: it informs the sampler and stays out of the front.
(`OptunaSearch` loses this; a pruned trial without values fills TPE's good set.)

`optuna-dashboard RUN/journal.log` shows it, also while the run goes on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeper.config import SearchConfig
from sweeper.fingerprint import fingerprint
from sweeper.journals import mend
from sweeper.ledger import Cost
from sweeper.points import Point, distinct
from sweeper.proposals import DIRECTIONS, Proposals, tell
from sweeper.samplers import quasi_random
from sweeper.space import Space
from sweeper.trial import TrialConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STUDY_NAME = "sweep"
FAILED = 2.0  # above any share of epochs


class Study:
    """One run's trials, on disk. Used from one thread of one process; the run's lock sees to the latter.

    Args:
        first: points that are tried before all others, in this order (`points`).
    """

    def __init__(
        self, journal: Path, config: SearchConfig, space: Space, seed: int, first: Sequence[Point] = ()
    ) -> None:
        mend(journal)
        Path(f"{journal}.lock").unlink(missing_ok=True)  # left by a killed driver; the run's own lock is held
        self.config, self.space = config, space
        is_random = config.sampler == "random"
        self.planned = [*distinct(first), *([] if is_random else quasi_random(space, config.startup, seed))]
        self.storage = JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=self.storage,
            directions=[DIRECTIONS[goal] for goal in config.objectives.values()],
            sampler=optuna.samplers.RandomSampler(),  # it keeps the record and is asked for nothing
            load_if_exists=True,
        )
        if self.study.metric_names is None:
            self.study.set_metric_names(list(config.objectives))  # for optuna-dashboard
        self.study_id = self.storage.get_study_id_from_name(STUDY_NAME)
        earlier = self.study.get_trials(deepcopy=False)
        self.asked = len(earlier)
        running = [t.number for t in earlier if t.state == TrialState.RUNNING]
        self.ids = {n: self.storage.get_trial_id_from_study_id_trial_number(self.study_id, n) for n in running}
        configs = [t.user_attrs["config"] for t in earlier if "config" in t.user_attrs]
        self.tried = {fingerprint(TrialConfig.model_validate(config)) for config in configs}
        self.proposals = Proposals(config, space, seed, earlier, self._was_tried)

    def trials(self) -> list[FrozenTrial]:
        """All trials that have an outcome, by number."""
        return [t for t in self.study.get_trials(deepcopy=False) if "outcome" in t.user_attrs]

    def interrupted(self) -> list[tuple[int, TrialConfig]]:
        """Trials that were running when the run was killed, to be trained again; also tells what was not yet told."""
        again = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "outcome" in trial.user_attrs:
                self._tell(trial.number, trial.user_attrs["outcome"])
            else:
                again.append((trial.number, TrialConfig.model_validate(trial.user_attrs["config"])))
        return again

    def ask(self) -> tuple[int, TrialConfig]:
        """A new trial: its number and its resolved configuration, written down."""
        number = self.asked
        point, trial = self.proposals.ask(number, self.planned[number] if number < len(self.planned) else None)
        config = TrialConfig.model_validate(point).resolved()
        trial.set_user_attr("config", config.model_dump(mode="json"))
        self.ids[number] = self.storage.create_new_trial(self.study_id, trial)
        self.asked = number + 1
        self.tried.add(fingerprint(config))
        return number, config

    def _was_tried(self, point: Mapping[str, Any]) -> bool:
        return fingerprint(TrialConfig.model_validate(point).resolved()) in self.tried

    def withdraw(self, number: int) -> None:
        """A trial that was asked for and never begun: it has no outcome, and no sampler is told of it."""
        self.study.tell(optuna.Trial(self.study, self.ids.pop(number)), state=TrialState.FAIL)
        self.proposals.withdraw(number)

    def record(self, number: int, outcome: dict[str, Any]) -> None:
        """Write an outcome down, then tell the sampler.

        Args:
            outcome: state, error, epochs, num_epochs, accuracy_val, cost (`Cost` as a dict), pretrain_seconds (of
                cost.train), params, parts (of a batch), curve, clock_seconds (of the search so far).
        """
        self.storage.set_trial_user_attr(self.ids[number], "outcome", outcome)
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        values, violation = self.as_told(outcome)
        tell(optuna.Trial(self.study, self.ids.pop(number)), values, violation)
        self.proposals.tell(number, values, violation)

    def as_told(self, outcome: Mapping[str, Any]) -> tuple[list[float], float]:
        """An outcome as the sampler hears of it: a value an objective, and how far it is from what was asked for.

        A trial that failed is told with accuracy 0 and a violation of `FAILED`: the sampler learns where not to look. A
        stopped one has the accuracy so far, the cost that the whole training would have had (so far alone it would look
        cheap), and for a violation the share of its epochs that it was not given. That holds for `front: anytime` too,
        where its epochs count: told as what it is worth there, it draws the sampler to what is good when cut short.
        """
        accuracy, cost, violation = outcome["accuracy_val"], Cost(**outcome["cost"]), 0.0
        if outcome["state"] == "failed" or accuracy is None or not math.isfinite(accuracy):
            accuracy, violation = 0.0, FAILED
        elif outcome["state"] == "stopped":
            violation = 1 - outcome["epochs"] / outcome["num_epochs"]
        if violation and outcome["epochs"]:
            cost = replace(cost, train=whole_training(outcome))
        values = {"accuracy": accuracy, "gpu_hours": cost.as_hours()["gpu_hours"]}
        return [values[name] for name in self.config.objectives], violation


def whole_training(outcome: Mapping[str, Any]) -> float:
    """Device-seconds that a trial which was cut short would have trained, at the pace that it had."""
    first = outcome.get("pretrain_seconds", 0.0)  # paid once, whenever it stops
    return float(first + (outcome["cost"]["train"] - first) * outcome["num_epochs"] / max(1, outcome["epochs"]))


def spent_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Device-seconds of training that the trials' outcomes hold."""
    return math.fsum(t.user_attrs["outcome"]["cost"]["train"] for t in trials)


def clock_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Seconds on the clock until the last of the trials ended, of all sessions of a run together.

    As `Desk` measured them: the dates in the journal come from a clock that may have been put forward or back.
    """
    return max((float(t.user_attrs["outcome"].get("clock_seconds", 0.0)) for t in trials), default=0.0)
