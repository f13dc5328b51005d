"""Lanes: long-lived Ray Train runs that take one trial after another. The only seam between Ray Train and the loop.

A `TorchTrainer` per trial pays 12 to 28 s of start-up each time (measured, `benchmarks/turnaround.py`); a lane pays
once. Its worker loop asks the mailbox for a job, trains it with `train.fit`, and asks again. Ray Train's own failure
policy restarts a worker group that died, and the mailbox hands it the job it held. A trial that fails (an exception,
NaN, a full GPU) is reported as failed and the lane stays warm. Lanes end cooperatively: a Train run that is stopped
from outside keeps its placement group for as long as the State API does not answer.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sweeper.errors import RunFailed
from sweeper.mailbox import Mailbox, Message

if TYPE_CHECKING:
    import torch

    from sweeper.batches import DataCache, DataRefs, TrialData
    from sweeper.outcome import EpochReport
    from sweeper.slots import LanePlan
    from sweeper.views import ViewConfig

HEALTH_CHECK_INTERVAL_S = "0.2"
CLOSE_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training to do: a resolved `TrialConfig` (as a dict), its data and its seed."""

    config: dict[str, Any]
    refs: DataRefs
    pool: DataRefs | None = None  # what its pre-training reads, if it has one
    views: ViewConfig
    view_seed: int
    seed: int
    until: int | None = None  # the epoch after which it is complete, where that is not its recipe's last
    final: bool = False  # evaluate on test and send the model home


class MailboxSlot:
    """A trial's checkpoint, kept by the mailbox on the driver's disk: lanes on any node need no shared folder."""

    def __init__(self, mailbox: Any, job_id: str) -> None:
        self.mailbox, self.job_id = mailbox, job_id

    def load(self) -> bytes | None:
        """The last checkpoint, or None."""
        state: bytes | None = ray.get(self.mailbox.load.remote(self.job_id))
        return state

    def save(self, state: bytes) -> None:
        """Keep this one instead; returns once it is on disk."""
        ray.get(self.mailbox.save.remote(self.job_id, state))


def _broadcast(value: Any, num_ranks: int) -> Any:
    """Rank 0's value on every rank."""
    if num_ranks == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _data_parallel(model: Any) -> Any:
    """DDP; without cross-entropy and KL the classifier has no gradient, which DDP must be told."""
    from ray.train.torch import prepare_model

    return prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})


def _run_job(job_id: str, job: Job, *, cache: DataCache, device: torch.device, mailbox: Any, lane: str) -> Message:
    """Train one job on this rank; returns what `Mailbox.finish` is told."""
    from ray.train import get_context

    from sweeper import train
    from sweeper.trial import TrialConfig

    context = get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    config = TrialConfig.model_validate(job.config)

    stopping = mailbox.stopping.remote(job_id) if rank == 0 else None
    sent: list[Any] = []

    def report(done: EpochReport) -> bool:
        going_on = True
        if stopping is not None:  # waiting for each answer took 1% of the lanes' time
            ray.get(sent)
            sent[:] = [mailbox.report.remote(lane, job_id, asdict(done))]
            ready, _ = ray.wait([stopping], timeout=0)
            ray.get(ready)
            going_on = not ready
        return bool(_broadcast(going_on, num_ranks))

    def read(config: TrialConfig, refs: DataRefs) -> TrialData:
        return cache.trial_data(
            refs,
            needs=config.needs,
            view_config=job.views,
            view_seed=job.view_seed,
            with_test=job.final and refs is job.refs,
        )

    first = config.pretraining
    pool = read(first, job.pool) if first is not None and job.pool is not None else None
    outcome = train.fit(
        config,
        read(config, job.refs),
        pool=pool,
        seed=job.seed,
        device=device,
        report=report,
        slot=MailboxSlot(mailbox, job_id),
        until=job.until,
        world=train.World(rank, num_ranks, _data_parallel if num_ranks > 1 else None),
        with_test=job.final,
        keep_model=job.final,
    )
    ray.get(sent)  # calls of an async actor may overtake each other: no end before the last report
    return asdict(outcome)


def reason_of(error: BaseException) -> str:
    """One line for a trial's `error` column: what went wrong and where."""
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}{place}"


def _warm_up(device: torch.device) -> None:
    """Pay before the first trial for what a process pays once, so that no trial is charged for it.

    That is lazy imports (timm, what torch's optimisers pull in) and first kernels.
    """
    import torch

    from sweeper import train  # noqa: F401
    from sweeper.views import CANONICAL, apply_views

    layer = torch.nn.Conv2d(3, 4, 3).to(device)
    optimizer = torch.optim.AdamW(layer.parameters())
    boxes_B5 = torch.tensor([CANONICAL], device=device)
    layer(apply_views(torch.zeros(1, 3, 8, 8, device=device), boxes_B5, 8)).sum().backward()
    optimizer.step()
    del layer, optimizer
    _clean_up()


def _clean_up() -> None:
    """Collect what a trial left.

    What outlives that stays (data, libraries), and is kept out of the way of the next collection: looking through it
    took 0.02 to 0.3 s after each trial.
    """
    gc.collect()
    gc.freeze()


def _lane_loop(settings: dict[str, Any]) -> None:
    """The Ray Train worker: jobs until the mailbox says that there are no more."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from sweeper.batches import DataCache
    from sweeper.store import Store

    torch.set_num_threads(settings["threads"])
    lane, mailbox = settings["lane"], settings["mailbox"]
    context = get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    device = get_device()
    cache = DataCache(Store(settings["store"]))
    _warm_up(device)
    incarnation = ray.get(mailbox.enlist.remote(lane, os.getpid())) if rank == 0 else 0
    while True:
        taken = ray.get(mailbox.take.remote(lane, incarnation)) if rank == 0 else None
        taken = _broadcast(taken, num_ranks)
        if taken is None:
            return
        job_id, packed = taken
        fatal: BaseException | None = None
        began = time.perf_counter()
        try:
            outcome = _run_job(job_id, pickle.loads(packed), cache=cache, device=device, mailbox=mailbox, lane=lane)
        except Exception as error:  # whatever one trial does wrong must not take the lane with it
            held_s = (time.perf_counter() - began) * num_ranks  # what failed held the device too
            outcome = {"state": "failed", "error": reason_of(error), "train_seconds": held_s}
            fatal = error if num_ranks > 1 else None
        _clean_up()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if rank == 0 or fatal is not None:
            ray.get(mailbox.finish.remote(lane, job_id, outcome))
        if fatal is not None:  # the other ranks wait in a collective call: only a new group can go on
            raise RuntimeError(f"trial {job_id} failed on one of {num_ranks} workers: {outcome['error']}")


class LanePool:
    """The lanes of a run and their mailbox; made by `lanes`."""

    def __init__(self, plan: LanePlan, store_uri: str, work: Path, mailbox: type[Mailbox] = Mailbox) -> None:
        self.plan, self.store_uri, self.work = plan, store_uri, work
        node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=node)(mailbox)
        self.mailbox = actor.remote(str(work / "checkpoints"))
        self.threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(plan.num_lanes)]
        self.errors: list[BaseException] = []

    def start(self) -> None:
        """Launch the lanes; they come up in the background."""

        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        for thread in self.threads:
            thread.start()

    def _run(self, number: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        gpus = {"GPU": self.plan.gpus} if self.plan.gpus else {}
        per_worker: dict[str, float] = {"CPU": self.plan.cpus, **gpus}
        trainer = TorchTrainer(
            _lane_loop,
            train_loop_config={
                "lane": str(number),
                "mailbox": self.mailbox,
                "store": self.store_uri,
                "threads": self.plan.cpus,
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
        ray.get(self.mailbox.close.remote(abort))
        for thread in self.threads:
            thread.join(timeout=CLOSE_TIMEOUT_S)
        ray.kill(self.mailbox)


@contextmanager
def lanes(plan: LanePlan, store_uri: str, work: Path, mailbox: type[Mailbox] = Mailbox) -> Iterator[LanePool]:
    """A running pool of lanes; they end with the block."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    pool = LanePool(plan, store_uri, work, mailbox)
    pool.start()
    try:
        yield pool
    except BaseException:
        pool.close(abort=True)
        raise
    pool.close()
