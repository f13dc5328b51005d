"""What the training loop says of a trial: after each epoch, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.ledger import SECONDS_PER_HOUR


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
    # class, what it was taken for on test, images
    confusion: list[tuple[int, int, int]] = field(default_factory=list)
    model: dict[str, bytes] = field(default_factory=dict)


def told(event: Mapping[str, Any], shared_seconds: float) -> dict[str, Any]:
    """What a scheduler hears of an epoch report.

    `gpu_hours` is the projected cost of the full run: what a trial has cost so far says only how far it is.

    Args:
        shared_seconds: device-seconds of the artifacts that the trial uses.
    """
    first = event.get("pretrain_seconds", 0.0)
    training = first + (event["train_seconds"] - first) / event["epoch"] * event["epochs"]
    return {
        "epoch": event["epoch"],
        "accuracy": event["accuracy_val"],
        "gpu_hours": (shared_seconds + training) / SECONDS_PER_HOUR,
        "train_seconds": event["train_seconds"],
    }
