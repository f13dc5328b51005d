"""What lanes say of their jobs, as a test reads it."""

from __future__ import annotations

from typing import Any

import ray

from sweeper.lane import LanePool

Messages = list[dict[str, Any]]
PATIENCE_S = 180.0  # a deadline, not a duration: a loaded machine starts a worker slowly


def follow(pool: LanePool, name: str) -> Messages:
    """All messages about a job, to its end."""
    messages: Messages = []
    while not messages or messages[-1]["type"] == "report":
        messages.append(ray.get(pool.mailbox.next_message.remote(name), timeout=PATIENCE_S))
    return messages


def events(pool: LanePool) -> Messages:
    found: Messages = ray.get(pool.mailbox.events_since.remote(0))
    return found
