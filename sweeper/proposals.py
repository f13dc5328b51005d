"""What a sampler proposes: Optuna's ask and tell over a study in memory that holds what a sampler can still use.

Samplers of Optuna look through all trials of their study at each call. Over a run's own record, which only grows, ten
thousand trials would cost a hundred times what a thousand do. So a sampler sees a window: the latest trials, and of the
earlier ones the front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import optuna
from optuna.samplers import PartialFixedSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeper import pareto
from sweeper.config import SearchConfig
from sweeper.points import Point
from sweeper.samplers import Untried, as_asked, make_sampler, suggest
from sweeper.space import Space

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
# The constraint with which a sampler is told that a trial is not what was asked for.
EARLY_STOPPED = "early_stopped"
WINDOW = 256  # a sampler sees the last WINDOW trials at least, and less than twice as many


def tell(handle: optuna.Trial, values: list[float], violation: float) -> None:
    """End a trial with its values and its constraint, which stands already where a run was killed between the two."""
    if EARLY_STOPPED not in handle.constraints:
        handle.set_constraint(EARLY_STOPPED, violation)
    handle.study.tell(handle, values)


class Proposals:
    """The points that a sampler proposes, by the number of their trials.

    Args:
        earlier: the trials of the run so far, by number, open ones too; those that were withdrawn tell nothing.
        was_tried: whether a point of the space (nested) was proposed before.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: Space,
        seed: int,
        earlier: Iterable[FrozenTrial] = (),
        was_tried: Callable[[Mapping[str, Any]], bool] = lambda point: False,
    ) -> None:
        self.config, self.space, self.seed, self.was_tried = config, space, seed, was_tried
        trials = {t.number: t for t in earlier if t.state != TrialState.FAIL}
        self._begin(trials, max(trials, default=0))

    def ask(self, number: int, fixed: Point | None = None) -> tuple[dict[str, Any], FrozenTrial]:
        """A point for trial `number`: nested, and as a running trial of Optuna.

        Args:
            fixed: leaves whose values are given; the sampler draws the rest.
        """
        if number >= self.first + 2 * WINDOW:
            known = self.study.get_trials(deepcopy=False)
            self._begin({n: known[handle.number] for n, handle in self.handles.items()}, number)
        sampler = make_sampler(self.config, self.seed, number)
        if fixed is not None:
            asked = {path: as_asked(self.space.domains[path], value) for path, value in fixed.items()}
            sampler = PartialFixedSampler(asked, sampler)
        elif self.config.sampler != "random":
            sampler = Untried(sampler, self.space, self.was_tried, number)
        self.study.sampler = sampler
        trial = self.study.ask()
        point = self.space.sample(lambda path, domain: suggest(trial, path, domain))
        self.handles[number] = trial
        own = self.study.get_trials(deepcopy=False)[trial.number]
        return point, create_trial(
            state=TrialState.RUNNING,
            params=own.params,
            distributions=own.distributions,
            system_attrs=own.system_attrs,
        )

    def tell(self, number: int, values: list[float], violation: float) -> None:
        """What a trial reached, and how far (> 0) that is from what was asked for."""
        handle = self.handles.get(number)
        if handle is not None:  # else it ended after the window had left it behind
            tell(handle, values, violation)

    def withdraw(self, number: int) -> None:
        """The trial was never begun: nothing is to be learnt from it."""
        handle = self.handles.pop(number, None)
        if handle is not None:
            self.study.tell(handle, state=TrialState.FAIL)

    def _begin(self, trials: Mapping[int, FrozenTrial], number: int) -> None:
        """A new window for trial `number`; it begins at a multiple of its size, for a resumed run as for any other."""
        self.first = max(0, number // WINDOW - 1) * WINDOW
        objectives = self.config.objectives.values()
        kept = _front({n: t for n, t in trials.items() if n < self.first}, [goal == "max" for goal in objectives])
        storage = InMemoryStorage()
        self.study = optuna.create_study(storage=storage, directions=[DIRECTIONS[goal] for goal in objectives])
        study_id = storage.get_study_id_from_name(self.study.study_name)
        self.handles: dict[int, optuna.Trial] = {}
        for known, trial in trials.items():
            if known >= self.first or known in kept:
                self.handles[known] = optuna.Trial(self.study, storage.create_new_trial(study_id, trial))


def _front(trials: Mapping[int, FrozenTrial], maximise: list[bool]) -> set[int]:
    """Those that no other beats, among trials that are what was asked for."""
    ended = {n: t for n, t in trials.items() if t.state == TrialState.COMPLETE and max(t.constraints.values()) <= 0}
    if not ended:
        return set()
    mask = pareto.front([t.values for t in ended.values()], maximise)
    return {number for number, is_on_it in zip(ended, mask, strict=True) if is_on_it}
