"""The study of a run: Optuna's ask and tell over a journal on disk, which is the run's memory.

Every trial's configuration is written down before it starts and its outcome before it is told, so that a run that is
killed at any moment goes on: finished trials stand, and those that were running are trained again under their numbers.
A stopped trial is told with its values and a violated constraint, not as complete with an immature accuracy: it informs
the sampler and stays out of the front. (`OptunaSearch` loses this; a pruned trial without values fills TPE's good set.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweeper.config import SearchConfig
from sweeper.ledger import Cost
from sweeper.space import Domain, Space
from sweeper.trial import TrialConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

STUDY_NAME = "sweep"
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
EARLY_STOPPED = "early_stopped"


def mend_tail(path: Path) -> None:
    """Cut a torn last line off a journal: Optuna appends to it, and the file never loads again."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)


def suggest(trial: optuna.Trial, path: str, domain: Domain) -> Any:
    """Ask Optuna for a value of a domain. Options that are not plain values are asked for by their position."""
    if domain.kind == "choice":
        if all(isinstance(option, str | int | float | bool | None) for option in domain.options):
            return trial.suggest_categorical(path, list(domain.options))
        return domain.options[trial.suggest_categorical(path, list(range(len(domain.options))))]
    if domain.kind == "randint":
        return trial.suggest_int(path, int(domain.low), int(domain.high) - 1)
    if domain.kind == "quniform":
        return trial.suggest_float(path, domain.low, domain.high, step=domain.q)
    return trial.suggest_float(path, domain.low, domain.high, log=domain.kind == "loguniform")


def make_sampler(config: SearchConfig, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for trial `number`: seeded by both, so that a resumed run does not repeat its first proposals."""
    own = (seed * 1_000_003 + number) % 2**31
    match config.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=own, multivariate=True, group=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=own, population_size=16)
        case "gp":
            return optuna.samplers.GPSampler(seed=own)
        case "random":
            return optuna.samplers.RandomSampler(seed=own)


class Study:
    """One run's trials, on disk. Used from one thread of one process; the run's lock sees to the latter."""

    def __init__(self, journal: Path, config: SearchConfig, space: Space, seed: int) -> None:
        mend_tail(journal)
        Path(f"{journal}.lock").unlink(missing_ok=True)  # left by a killed driver; the run's own lock is held
        backend = JournalFileBackend(str(journal))
        self.config, self.space, self.seed = config, space, seed
        self.objectives = list(config.objectives)
        self.study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=optuna.storages.JournalStorage(backend),
            directions=[DIRECTIONS[config.objectives[name]] for name in self.objectives],
            sampler=make_sampler(config, seed, 0),
            load_if_exists=True,
        )

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
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = make_sampler(self.config, self.seed, number)
        trial = self.study.ask()
        point = self.space.sample(lambda path, domain: suggest(trial, path, domain))
        config = TrialConfig.model_validate(point).resolved()
        trial.set_user_attr("config", config.model_dump(mode="json"))
        return trial.number, config

    def record(self, number: int, outcome: dict[str, Any]) -> None:
        """Write an outcome down, then tell the sampler.

        Args:
            outcome: state, error, epochs, num_epochs, accuracy_val, cost (`Cost` as a dict), pretrain_seconds (of
                cost.train), params, curve.
        """
        self._handle(number).set_user_attr("outcome", outcome)
        self._tell(number, outcome)

    def _handle(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def _tell(self, number: int, outcome: dict[str, Any]) -> None:
        accuracy = outcome["accuracy_val"]
        if outcome["state"] == "failed" or accuracy is None or not math.isfinite(accuracy):
            self.study.tell(number, state=TrialState.FAIL)
            return
        cost = Cost(**outcome["cost"])
        left = 1 - outcome["epochs"] / outcome["num_epochs"]
        if outcome["state"] == "stopped":
            # The cost that it would have had: so far alone, a stopped trial would look cheap.
            first = outcome.get("pretrain_seconds", 0.0)  # paid once, whenever it stops
            whole = first + (cost.train - first) / max(1e-9, 1 - left)
            cost = Cost(cost.adapt, cost.targets, cost.synthetic, whole)
        handle = self._handle(number)
        if EARLY_STOPPED not in handle.constraints:  # set already where the run was killed just before `tell`
            handle.set_constraint(EARLY_STOPPED, left if outcome["state"] == "stopped" else 0.0)
        values = {"accuracy": accuracy, "gpu_hours": cost.as_hours()["gpu_hours"]}
        self.study.tell(number, [values[name] for name in self.objectives])


def spent_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Device-seconds of training that the trials' outcomes hold."""
    return math.fsum(t.user_attrs["outcome"]["cost"]["train"] for t in trials)
