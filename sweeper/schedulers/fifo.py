"""Every trial runs to its last epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sweeper.registry import Settings

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Config(Settings):
    """Nothing to set."""

    kind: Literal["fifo"] = "fifo"


def build(config: Config, max_t: int) -> TrialScheduler:
    """Tune's FIFO scheduler; `max_t` has no part in it, since trials end by themselves."""
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()
