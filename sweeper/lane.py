"""Lanes: long-lived Ray Train runs that take one trial after another.

A `TorchTrainer` per trial pays 12 to 28 s of start-up each time (measured, `benchmarks/turnaround.py`); a lane pays
once, and its workers (`worker`) take job after job from the mailbox. Ray Train's own failure policy restarts a worker
group that died, and the mailbox hands it the job it held. A trial that fails (an exception, NaN, a full GPU) is
reported as failed and the lane stays warm. Lanes end cooperatively: a Train run that is stopped from outside keeps its
placement group for as long as the State API does not answer.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayError

from sweeper import nodes
from sweeper.errors import RunFailed
from sweeper.mailbox import Mailbox
from sweeper.nodes import Shortage
from sweeper.watchdog import STALL_S
from sweeper.worker import Job, lane_loop, reason_of

if TYPE_CHECKING:
    from sweeper.slots import LanePlan

HEALTH_CHECK_INTERVAL_S = "0.2"
CLOSE_TIMEOUT_S = 20.0
NODES_INTERVAL_S = 2.0
MOST_ERRORS = 8  # of lanes that end by themselves before it is given up; a node may have taken several along


def _told(lane: str, mailbox: Any) -> Any:
    """Has Ray Train tell the mailbox which process runs a lane, and what room its workers have been given.

    It gives nobody else a way to end the one, and, where that ended otherwise, to free the other.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class Told(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            ray.get(mailbox.control.remote(lane, ray.get_runtime_context().current_actor))

        def after_worker_group_start(self, worker_group: Any) -> None:
            room = worker_group.get_worker_group_state().placement_group_handle.placement_group
            ray.get(mailbox.occupy.remote(lane, room))

    return Told()


def _lean(trainer: Any) -> Any:
    """A kind of Ray Train's trainers without two processes that it keeps for each of them on the head.

    That for Ray datasets, since lanes read the store; and that which frees a lane's room if its controller dies, which
    `LanePool` does.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    left_out = (DatasetsCallback, PlacementGroupCleanerCallback)

    class Lean(trainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if not isinstance(each, left_out)]

    return Lean


class LanePool:
    """The lanes of a run and their mailbox: up while a `with` block runs, and ended with it.

    With an elastic plan there are as many lanes as nodes have room for, at most as many as there are jobs to expect:
    nodes that join bring lanes, an autoscaler is asked for those that are missing, and lanes that nothing is left for
    end, so that it can take their nodes away.

    Args:
        stall_s: the shortest silence of a trial after which its worker is started again (`watchdog`).
        shortage: is told when no node has room for any lane.
    """

    def __init__(
        self,
        plan: LanePlan,
        store_uri: str,
        work: Path,
        mailbox: type[Mailbox] = Mailbox,
        stall_s: float = STALL_S,
        shortage: Shortage | None = None,
    ) -> None:
        self.plan, self.store_uri, self.work, self.stall_s = plan, store_uri, work, stall_s
        node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=node)(mailbox)
        self.mailbox = actor.remote(str(work / "checkpoints"))
        self.threads: dict[int, threading.Thread] = {}
        self.errors: list[BaseException] = []  # with which lanes ended that should not have
        self.lost: BaseException | None = None
        self.watch, self.closing = threading.Thread(target=self._watch, daemon=True), threading.Event()
        self.demand = nodes.Demand()
        self.shortage = shortage or Shortage(lambda line: None, math.inf)
        self._expected, self._known = plan.num_lanes, set[str]()

    def __enter__(self) -> Self:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(abort=kind is not None)

    @property
    def room(self) -> int:
        """How many trainings can run at a time."""
        return max(1, len(self.threads)) if self.plan.is_elastic else self.plan.num_lanes

    def expect(self, num_jobs: int) -> None:
        """Tell that no more than so many trainings could run at a time from now on."""
        self._expected = num_jobs

    def start(self) -> None:
        """Launch the lanes; they come up in the background."""

        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        self._follow_cluster()
        self.watch.start()

    def _watch(self) -> None:
        while not self.closing.wait(NODES_INTERVAL_S):
            try:
                self._follow_cluster()
            except RunFailed as error:
                self._lost(error)
                return

    def _follow_cluster(self) -> None:
        """Tell the mailbox which nodes are alive, and launch the lanes that are missing.

        A lane that lost its node may wait for another one for ever: its job goes to the next one that is free.

        Raises:
            RunFailed: there has been no room for any lane for too long.
        """
        alive = nodes.live()
        if self._known - alive.keys():
            ray.get(self.mailbox.keep.remote(set(alive)))
        self._known = set(alive)
        fits, wanted = self.plan.num_lanes, max(0, self.plan.num_lanes - len(self.errors))
        if self.plan.is_elastic:
            fits, wanted = self.plan.fits(alive.values()), min(wanted, self._expected)
            if self.plan.head_room < min(fits, wanted):
                self.shortage.of_head(self.plan.head_room, min(fits, wanted))
            wanted = min(wanted, self.plan.head_room)
            # Lanes that are on their way come first: a group that asks for more would take their room.
            is_settled = ray.get(self.mailbox.present.remote()) >= min(wanted, fits)
            self.demand.set(self.plan, max(0, wanted - fits) if is_settled else 0)
            if fits:
                self.shortage.is_over()
            elif wanted:
                self.shortage.of("a trial", self.plan, [*alive.values()])
            if len(self.threads) > wanted:
                ray.get(self.mailbox.retire.remote(len(self.threads) - wanted))
        free = (number for number in itertools.count() if number not in self.threads)
        for number in itertools.islice(free, max(0, min(wanted, fits) - len(self.threads))):
            self.threads[number] = threading.Thread(target=self._run, args=(number,), daemon=True)
            self.threads[number].start()

    def _run(self, number: int) -> None:
        try:
            self._trainer(number).fit()
        except Exception as error:
            self.errors.append(error)
            self._free(number)
        if not self.closing.is_set():
            self.threads.pop(number, None)
            if len(self.errors) >= min(self.plan.num_lanes, MOST_ERRORS) and not self.threads:
                self._lost(self.errors[-1])

    def _free(self, number: int) -> None:
        """Give back the room of a lane whose controller died: Ray keeps it for as long as the driver lives."""
        with suppress(RayError):  # the session ends
            if ray.is_initialized() and (room := ray.get(self.mailbox.room_of.remote(str(number)))) is not None:
                ray.util.remove_placement_group(room)

    def _lost(self, error: BaseException) -> None:
        """No lane is left, and none will come."""
        self.lost = error
        ray.get(self.mailbox.give_up.remote())

    def _trainer(self, number: int) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        # One worker needs no process group, and without its backend the lane's controller, which runs on the head,
        # never imports torch: that is 280 MB of its 400, and seconds of its start.
        if self.plan.workers > 1:
            from ray.train.torch import TorchTrainer as Trainer
        else:
            from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer as Trainer
        return _lean(Trainer)(
            lane_loop,
            train_loop_config={
                "lane": str(number),
                "mailbox": self.mailbox,
                "store": self.store_uri,
                "threads": self.plan.cpus,
                "stall_s": self.stall_s,
            },
            scaling_config=ScalingConfig(
                num_workers=self.plan.workers, use_gpu=self.plan.gpus > 0, resources_per_worker=self.plan.bundle
            ),
            run_config=RunConfig(
                name=f"lane-{number}",
                storage_path=str(self.work / "train"),
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[_told(str(number), self.mailbox)],
            ),
        )

    def submit(self, job_id: str, job: Job) -> None:
        """Queue a job; as bytes, since the mailbox's process would import torch to hold it as an object."""
        ray.get(self.mailbox.submit.remote(job_id, pickle.dumps(job)))

    def check(self) -> None:
        """Raise RunFailed once no lane is left."""
        if isinstance(self.lost, RunFailed):
            raise self.lost
        if self.lost is not None:
            raise RunFailed(f"no lane is left; the last one ended with {reason_of(self.lost)}")

    def close(self, abort: bool = False) -> None:
        """Let the lanes end and wait; `abort` leaves running jobs at their next epoch, with their checkpoints."""
        self.closing.set()
        self.watch.join(timeout=CLOSE_TIMEOUT_S)  # it asks Ray, which may be gone after this
        ray.get(self.mailbox.close.remote(abort))
        self.demand.set(self.plan, 0)
        self._join()
        for controller in ray.get(self.mailbox.list_controllers.remote()):  # a lane that waits for a node does not end
            ray.kill(controller)
        self._join()  # a thread that outlives Ray's session may end the process: status 1, and not a word
        ray.kill(self.mailbox)

    def _join(self) -> None:
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in [*self.threads.values()]:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
