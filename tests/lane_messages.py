"""What lanes say of their jobs, as a test reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from sweeper import checkpoints
from sweeper.lane import LanePool

Messages = list[dict[str, Any]]
PATIENCE_S = 180.0  # a deadline, not a duration: a loaded machine starts a worker slowly


class Impatient(dict[str, Any]):
    """A trial's configuration; a worker that gets it saves as soon as it can from then on, and not after 5 s."""

    def __reduce__(self) -> Any:
        return _impatient, (dict(self),)


def _impatient(config: Mapping[str, Any]) -> Mapping[str, Any]:
    checkpoints.CHECKPOINT_INTERVAL_S = 0.0
    return config


def follow(pool: LanePool, name: str) -> Messages:
    """All messages about a job, to its end."""
    messages: Messages = []
    while not messages or messages[-1]["type"] == "report":
        messages.append(ray.get(pool.mailbox.next_message.remote(name), timeout=PATIENCE_S))
    return messages


def events(pool: LanePool) -> Messages:
    found: Messages = ray.get(pool.mailbox.events_since.remote(0))
    return found
