"""Trials as a Tune scheduler sees them, without Tune."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class Trials:
    """Feeds a Tune scheduler results as Tune does. A trial's Tune id is not its job's name, as in a resumed run."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.known: dict[str, Any] = {}

    def tell(self, name: str, result: Mapping[str, Any]) -> str:
        if name not in self.known:
            self.known[name] = SimpleNamespace(trial_id=f"tune_{name}", status="RUNNING", config={"job": name})
            self.scheduler.on_trial_add(None, self.known[name])
        result = {"training_iteration": 1, **result}
        return str(self.scheduler.on_trial_result(None, self.known[name], result))

    def report(self, name: str, epoch: int, accuracy: float | None, gpu_hours: float | None = 1.0) -> str:
        result = {"epoch": epoch, "accuracy": accuracy, "gpu_hours": gpu_hours, "train_seconds": 10.0 * epoch}
        return self.tell(name, result)
