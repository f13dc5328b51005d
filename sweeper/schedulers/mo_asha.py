"""Asynchronous successive halving on all objectives together: at a rung the best 1/reduction by fronts go on.

Schmucker et al. 2021, "Multi-objective Asynchronous Successive Halving", arXiv 2106.12639, in the stopping form; the
ranking and the tables are `sweeper.rungs`. Cost enters as what the full run will cost, in logs: what was spent so far
would make every trial that is stopped early look cheap. With one objective this is ASHA on that one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sweeper.registry import Settings
from sweeper.rungs import Rungs, Spread
from sweeper.schedulers import (
    COST,
    LATE_EPOCHS,
    METRIC,
    OBJECTIVES,
    SECONDS_ATTR,
    TIME_ATTR,
    Grace,
    Reduction,
    grace_epochs,
    rung_levels,
    trained_share,
)

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Config(Settings):
    """Where the rungs are, and who is ranked how.

    grace: the first rung, as a share of `max` when below 1, else in units; late by default, since earlier rungs lose
    students that start slowly, taught ones among them (`benchmarks/search.py --choose`); reduction: eta; max: no rung
    lies there or beyond, the space's most epochs where it is left out; keep: the share of trials that no rung stops, by
    a hash of their names, so that rungs can be held against how trials end; spread: how a front is ordered; unit: of
    grace and max, epochs or device-seconds (`max` has to be given then).
    """

    kind: Literal["mo_asha"] = "mo_asha"
    grace: Grace = 0.5
    reduction: Reduction = 4.0
    max: Grace | None = None
    keep: Annotated[float, Field(ge=0, le=1)] = 0.1
    spread: Spread = "epsilon_net"
    unit: Literal["epochs", "seconds"] = "epochs"

    @model_validator(mode="after")
    def _seconds_have_an_end(self) -> Self:
        if self.unit == "seconds" and self.max is None:
            raise ValueError("rungs in device-seconds need `max`: the seconds from which on no trial is stopped")
        return self


def levels(config: Config, max_t: int) -> list[float]:
    """The rungs, ascending: whole epochs, or device-seconds; none where the first would lie at the end or beyond."""
    end = config.max or max_t
    if config.unit == "seconds":
        return rung_levels(config.grace * end if config.grace < 1 else config.grace, config.reduction, end)
    found = rung_levels(grace_epochs(config.grace, end), config.reduction, end)
    return sorted({float(math.ceil(level - 1e-9)) for level in found if math.ceil(level - 1e-9) < end})


def expected_share(config: Config, max_t: int, trials: int | None = None) -> float:
    """The share of the epochs that a search trains, immune trials included; `max` seconds stand for a full run."""
    end = config.max if config.unit == "seconds" and config.max else max_t
    late = LATE_EPOCHS if trials and config.unit == "epochs" else 0.0
    before_end = [level for level in levels(config, max_t) if level < end]
    return trained_share(before_end, config.reduction, end, config.keep, late=late, trials=trials)


def is_immune(name: str, keep: float) -> bool:
    """Whether no rung stops the trial: true for a share `keep` of all names, and the same whenever it is asked."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) < keep * 2**64


def build(
    config: Config, max_t: int, *, objectives: Mapping[str, str] = OBJECTIVES, journal: Path | None = None
) -> TrialScheduler:
    """A Tune scheduler over `Rungs`, which are its attribute `rungs`.

    A trial is known by `config["job"]`, which stays the same when a run is resumed, else by its `trial_id`. A result
    without a time is passed over; a missing or NaN objective, or a cost of 0 or less, ranks last at a rung.

    Raises:
        RunFailed: the journal belongs to other rungs or can not be read.
    """
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    names = list(objectives)
    time_attr = TIME_ATTR if config.unit == "epochs" else SECONDS_ATTR
    rungs = Rungs(
        levels(config, max_t),
        config.reduction,
        [objectives[name] == "max" for name in names],
        spread=config.spread,
        preferred=names.index(METRIC) if METRIC in names else 0,
        journal=journal,
    )

    class MultiObjectiveASHA(FIFOScheduler):  # type: ignore[misc]
        """Stops what is not among the best of its rung."""

        def __init__(self) -> None:
            super().__init__()
            self.rungs = rungs

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
            if result.get(time_attr) is None:
                return str(TrialScheduler.CONTINUE)
            name = str(trial.config.get("job", trial.trial_id))
            goes_on = self.rungs.report(name, result[time_attr], [_value(result, objective) for objective in names])
            stays = goes_on or is_immune(name, config.keep)
            return str(TrialScheduler.CONTINUE if stays else TrialScheduler.STOP)

        def debug_string(self) -> str:
            counts = (f"{level:g}: {len(self.rungs.records(level))}" for level in self.rungs.levels)
            return f"Using multi-objective ASHA: records at {config.unit} " + ", ".join(counts)

    return MultiObjectiveASHA()


def _value(result: Mapping[str, Any], objective: str) -> float | None:
    """An objective as it is ranked; None for a cost that has no logarithm."""
    value = result.get(objective)
    if objective != COST or value is None:
        return value
    return math.log(value) if value > 0 else None
