"""How Optuna is asked: domains as its distributions, its samplers, and proposals that were not tried before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from sweeper.config import SearchConfig
from sweeper.domain import is_same
from sweeper.space import Domain, Space

# So often a sampler may propose what was tried before; then so many random points are looked at.
PROPOSALS = 10
RANDOM_POINTS = 100


def _is_plain(domain: Domain) -> bool:
    return all(isinstance(option, str | int | float | bool | None) for option in domain.options)


def as_asked(domain: Domain, value: Any) -> Any:
    """A value of a domain as `suggest` asks for it."""
    if domain.kind != "choice" or _is_plain(domain):
        return value
    return next(i for i, option in enumerate(domain.options) if is_same(option, value))


def from_asked(domain: Domain, value: Any) -> Any:
    """The value that `as_asked` stands for."""
    return value if domain.kind != "choice" or _is_plain(domain) else domain.options[value]


def suggest(trial: optuna.Trial, path: str, domain: Domain) -> Any:
    """Ask Optuna for a value of a domain. Options that are not plain values are asked for by their position."""
    if domain.kind == "choice":
        if _is_plain(domain):
            return trial.suggest_categorical(path, list(domain.options))
        return domain.options[trial.suggest_categorical(path, list(range(len(domain.options))))]
    if domain.kind == "randint":
        return trial.suggest_int(path, int(domain.low), int(domain.high) - 1)
    if domain.kind == "quniform":
        return trial.suggest_float(path, domain.low, domain.high, step=domain.q)
    return trial.suggest_float(path, domain.low, domain.high, log=domain.kind == "loguniform")


class _InOrder:
    """Parents by trial number, as Optuna has them from its cache: a resumed run, whose cache is new, goes on alike."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)  # type: ignore[misc]


class NSGAIISampler(_InOrder, optuna.samplers.NSGAIISampler):
    """Optuna's."""


class NSGAIIISampler(_InOrder, optuna.samplers.NSGAIIISampler):
    """Optuna's."""


def make_sampler(config: SearchConfig, seed: int, number: int) -> BaseSampler:
    """The sampler for trial `number`: seeded by both, so that a resumed run does not repeat its first proposals."""
    own = (seed * 1_000_003 + number) % 2**31
    match config.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=own, n_startup_trials=config.startup, multivariate=True, group=True)
        case "nsga2":
            return NSGAIISampler(seed=own, population_size=16)
        case "nsga3":
            return NSGAIIISampler(seed=own, population_size=16)
        case "gp":
            return optuna.samplers.GPSampler(seed=own, n_startup_trials=config.startup)
        case "random":
            return optuna.samplers.RandomSampler(seed=own)


def quasi_random(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Points that fill the space evenly: a scrambled Sobol' sequence over its domains, active or not.

    Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points". `random` is left as it is asked for.
    """
    domains = {path: domain for path, domain in space.domains.items() if len(domain.options) != 1}
    if not count or not domains:
        return []
    sobol = qmc.Sobol(len(domains), scramble=True, rng=np.random.default_rng(seed))
    unit = sobol.random_base2(math.ceil(math.log2(count)))[:count]
    return [{p: d.at(float(u)) for (p, d), u in zip(domains.items(), row, strict=True)} for row in unit]


class Untried(BaseSampler):
    """Another sampler's proposals, without points that were tried: with one seed a training says nothing twice.

    A model of a finite space comes back to what it found best. Where it does so `PROPOSALS` times, a random point that
    was not tried takes the place; where none is found among `RANDOM_POINTS`, the space is as good as used up.

    Args:
        was_tried: whether a point of the space (nested) was proposed before.
    """

    def __init__(
        self, base: BaseSampler, space: Space, was_tried: Callable[[Mapping[str, Any]], bool], seed: int
    ) -> None:
        self.base, self.space, self.was_tried = base, space, was_tried
        self.draw = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.base.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for _ in range(PROPOSALS):
            params = self.base.sample_relative(study, trial, search_space)
            if not self._is_known(params):
                return params
        for _ in range(RANDOM_POINTS):
            point = self.space.sample(lambda path, domain: domain.at(float(self.draw.random())))
            if not self.was_tried(point):
                values = self.space.point_values(point)
                return {
                    path: as_asked(self.space.domains[path], values[path]) for path in search_space if path in values
                }
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.base.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.base.after_trial(study, trial, state, values)

    def _is_known(self, params: Mapping[str, Any]) -> bool:
        """Whether the proposal decides all leaves that count, and the point was tried."""
        try:
            point = self.space.sample(lambda path, domain: from_asked(domain, params[path]))
        except KeyError:
            return False
        return self.was_tried(point)
