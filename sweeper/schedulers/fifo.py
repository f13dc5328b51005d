"""Every trial runs to its last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sweeper.registry import Settings
from sweeper.schedulers import OBJECTIVES

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class Config(Settings):
    """Nothing to set."""

    kind: Literal["fifo"] = "fifo"


def build(
    config: Config, max_t: int, *, objectives: Mapping[str, str] = OBJECTIVES, journal: Path | None = None
) -> TrialScheduler:
    """Tune's FIFO scheduler; neither epochs nor objectives have a part in it, since trials end by themselves."""
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()
