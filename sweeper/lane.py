"""Lanes: long-lived Ray Train runs that take one trial after another.

A `TorchTrainer` per trial pays 12 to 28 s of start-up each time (measured, `benchmarks/turnaround.py`); a lane pays
once, and its workers (`worker`) take job after job from the mailbox. Ray Train's own failure policy restarts a worker
group that died, and the mailbox hands it the job it held. A trial that fails (an exception, NaN, a full GPU) is
reported as failed and the lane stays warm. Lanes end cooperatively: a Train run that is stopped from outside keeps its
placement group for as long as the State API does not answer.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from sweeper.errors import RunFailed
from sweeper.mailbox import Mailbox
from sweeper.watchdog import STALL_S
from sweeper.worker import Job, lane_loop, reason_of

if TYPE_CHECKING:
    from sweeper.slots import LanePlan

HEALTH_CHECK_INTERVAL_S = "0.2"
CLOSE_TIMEOUT_S = 20.0
NODES_INTERVAL_S = 2.0


class LanePool:
    """The lanes of a run and their mailbox; made by `lanes`."""

    def __init__(
        self, plan: LanePlan, store_uri: str, work: Path, mailbox: type[Mailbox] = Mailbox, stall_s: float = STALL_S
    ) -> None:
        self.plan, self.store_uri, self.work, self.stall_s = plan, store_uri, work, stall_s
        node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=node)(mailbox)
        self.mailbox = actor.remote(str(work / "checkpoints"))
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(plan.num_lanes)]
        self.errors: list[BaseException] = []
        self.watch, self.closing = threading.Thread(target=self._watch, daemon=True), threading.Event()

    def start(self) -> None:
        """Launch the lanes; they come up in the background."""

        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        for thread in self.threads:
            thread.start()
        self.watch.start()

    def _watch(self) -> None:
        """Tell the mailbox which nodes are alive: a lane that lost its node may wait for another one for ever."""
        known: set[str] = set()
        while not self.closing.wait(NODES_INTERVAL_S):
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            if known - alive:
                ray.get(self.mailbox.keep.remote(alive))
            known = alive

    def _run(self, number: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus = {"GPU": self.plan.gpus} if self.plan.gpus else {}
        per_worker: dict[str, float] = {"CPU": self.plan.cpus, **gpus}
        trainer = TorchTrainer(
            lane_loop,
            train_loop_config={
                "lane": str(number),
                "mailbox": self.mailbox,
                "store": self.store_uri,
                "threads": self.plan.cpus,
                "stall_s": self.stall_s,
            },
            scaling_config=ScalingConfig(
                num_workers=self.plan.workers, use_gpu=self.plan.gpus > 0, resources_per_worker=per_worker
            ),
            run_config=RunConfig(
                name=f"lane-{number}",
                storage_path=str(self.work / "train"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            self.errors.append(error)
            if len(self.errors) == len(self.threads):
                ray.get(self.mailbox.give_up.remote())

    def submit(self, job_id: str, job: Job) -> None:
        """Queue a job; as bytes, since the mailbox's process would import torch to hold it as an object."""
        ray.get(self.mailbox.submit.remote(job_id, pickle.dumps(job)))

    def check(self) -> None:
        """Raise RunFailed once no lane is left."""
        if len(self.errors) == len(self.threads):
            raise RunFailed(f"no lane is left; the last one ended with {reason_of(self.errors[-1])}")

    def close(self, abort: bool = False) -> None:
        """Let the lanes end and wait; `abort` leaves running jobs at their next epoch, with their checkpoints."""
        self.closing.set()
        self.watch.join(timeout=CLOSE_TIMEOUT_S)  # it asks Ray, which may be gone after this
        ray.get(self.mailbox.close.remote(abort))
        for thread in self.threads:
            thread.join(timeout=CLOSE_TIMEOUT_S)
        ray.kill(self.mailbox)


@contextmanager
def lanes(
    plan: LanePlan, store_uri: str, work: Path, mailbox: type[Mailbox] = Mailbox, stall_s: float = STALL_S
) -> Iterator[LanePool]:
    """A running pool of lanes; they end with the block.

    Args:
        stall_s: the shortest silence of a trial after which its worker is started again (`watchdog`).
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    pool = LanePool(plan, store_uri, work, mailbox, stall_s)
    pool.start()
    try:
        yield pool
    except BaseException:
        pool.close(abort=True)
        raise
    pool.close()
