"""What the training loop says of a trial: after each epoch, and at its end."""

from __future__ import annotations

from dataclasses import dataclass, field


class TrialFailed(Exception):
    """This configuration can not be trained: the reason goes into the trial's row, the lane goes on."""


@dataclass(frozen=True)
class EpochReport:
    """What the loop says after each epoch; `train_seconds` are device-seconds so far, all ranks together."""

    epoch: int
    epochs: int
    accuracy_val: float
    loss: float
    train_seconds: float
    pretrain_seconds: float = 0.0  # of `train_seconds`


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `model` holds the exported files (config.json, model.safetensors) if they were asked for."""

    state: str  # completed | stopped
    epochs: int
    accuracy_val: float
    accuracy_test: float | None
    train_seconds: float
    params: int
    pretrain_seconds: float = 0.0  # of `train_seconds`
    parts: int = 1  # of each batch: more than one where the whole did not fit the device's memory
    # epoch, accuracy on validation, loss, train_seconds; compared without, since seconds never repeat
    curve: list[tuple[int, float, float, float]] = field(default_factory=list, compare=False)
    model: dict[str, bytes] = field(default_factory=dict)
