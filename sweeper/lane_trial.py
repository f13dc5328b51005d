"""A trial as Ray Tune sees it. It has a process of its own, so that this imports as little as it can.

What the search's own modules import would be another 50 MB for each lane, all of it on the head.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

from sweeper.outcome import told


class LaneTrial(tune.Trainable):  # type: ignore[misc]
    """A trial as Tune sees it: each `step` is the next message about its job.

    It never ends a job. Tune may start an actor for a trial, then find an idle one to reuse and drop the first: what
    that one did on its way out would hit the job that the other one waits for.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the job that the searcher has put into the mailbox."""
        self.mailbox = config["mailbox"]
        self.job, self.shared_seconds = config["job"], config["shared_seconds"]
        self.last: dict[str, Any] = {"epoch": 0, "accuracy": 0.0}

    def step(self) -> dict[str, Any]:
        """Wait for the job's next epoch or its end."""
        message = ray.get(self.mailbox.next_message.remote(self.job))
        if message["type"] != "report":
            return {**self.last, "done": True}
        self.last = told(message, self.shared_seconds)
        return dict(self.last)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the old job and take up a new one."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: a job's checkpoint is the mailbox's."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See `save_checkpoint`."""
