"""What a lane's worker process does: take a job from the mailbox, train it with `train.fit`, and ask again.

Together with `lane.py`, which starts these processes, it is the only seam between Ray Train and the loop.
"""

from __future__ import annotations

import gc
import os
import pickle
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sweeper import cpu
from sweeper.errors import SweeperError
from sweeper.fingerprint import fingerprint
from sweeper.mailbox import Message
from sweeper.watchdog import Watchdog

if TYPE_CHECKING:
    import torch

    from sweeper.batches import DataRefs, TrialData
    from sweeper.data_cache import DataCache
    from sweeper.outcome import EpochReport
    from sweeper.views import ViewConfig


class DataLost(Exception):
    """The store does not give what a trial reads: no fault of the trial's, and the next one would fare no better."""


LOOK_INTERVAL_S = 2.0  # Ray asks its nodes every 5 s


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

    @property
    def identity(self) -> str:
        """Equal for jobs that train alike: what a checkpoint belongs to, whatever name it lies under."""
        return fingerprint([self.config, self.refs.images, self.refs.synthetic, self.view_seed, self.seed])


class MailboxSlot:
    """A trial's checkpoint, kept by the mailbox on the driver's disk: lanes on any node need no shared folder.

    It begins with the identity of its job: names are numbers within a run, and where somebody took the run's journal
    away, another configuration has the name.
    """

    def __init__(self, mailbox: Any, job_id: str, identity: str, num_ranks: int) -> None:
        self.mailbox, self.job_id, self.num_ranks = mailbox, job_id, num_ranks
        self.identity = identity.encode()
        self.looked_at = time.monotonic()

    def load(self) -> bytes | None:
        """The last checkpoint, or None."""
        kept: bytes | None = ray.get(self.mailbox.load.remote(self.job_id))
        return kept.removeprefix(self.identity) if kept and kept.startswith(self.identity) else None

    def save(self, state: bytes) -> None:
        """Keep this one instead; returns once it is on disk, or the disk would not take it: no fault of the trial's."""
        with suppress(OSError):
            ray.get(self.mailbox.save.remote(self.job_id, self.identity + state))

    def is_urgent(self) -> bool:
        """Whether Ray knows that a node of this lane will be taken away; on a spot machine minutes before it goes.

        A worker on its own looks now and then; of several all look each time, since Ray brings them together for it.
        """
        from ray.train import get_preemption_info

        if self.num_ranks == 1 and time.monotonic() - self.looked_at < LOOK_INTERVAL_S:
            return False
        self.looked_at = time.monotonic()
        return get_preemption_info() is not None


def _broadcast(value: Any, num_ranks: int) -> Any:
    """Rank 0's value on every rank."""
    if num_ranks == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _of_all_ranks(value: Any, num_ranks: int) -> list[Any]:
    """Every rank's value on every rank, by rank."""
    if num_ranks == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * num_ranks
    dist.all_gather_object(values, value)
    return values


def _data_parallel(model: Any) -> Any:
    """DDP; without cross-entropy and KL the classifier has no gradient, which DDP must be told."""
    from ray.train.torch import prepare_model

    return prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})


def _run_job(
    job_id: str, job: Job, *, cache: DataCache, device: torch.device, mailbox: Any, lane: str, watchdog: Watchdog
) -> Message:
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
        watchdog.alive()
        if stopping is not None:  # waiting for each answer took 1% of the lanes' time
            ray.get(sent)
            sent[:] = [mailbox.report.remote(lane, job_id, asdict(done))]
            ready, _ = ray.wait([stopping], timeout=0)
            ray.get(ready)
            going_on = not ready
        return bool(_broadcast(going_on, num_ranks))

    def read(config: TrialConfig, refs: DataRefs) -> TrialData:
        try:
            return cache.trial_data(
                refs,
                needs=config.needs,
                view_config=job.views,
                view_seed=job.view_seed,
                with_test=job.final and refs is job.refs,
            )
        except SweeperError as error:
            raise DataLost(str(error)) from error

    first = config.pretraining
    pool = read(first, job.pool) if first is not None and job.pool is not None else None
    outcome = train.fit(
        config,
        read(config, job.refs),
        pool=pool,
        seed=job.seed,
        device=device,
        report=report,
        slot=MailboxSlot(mailbox, job_id, job.identity, num_ranks),
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


def lane_loop(settings: dict[str, Any]) -> None:
    """The Ray Train worker: jobs until the mailbox says that there are no more."""
    import torch
    from ray.train import get_context
    from ray.train.torch import get_device

    from sweeper.data_cache import DataCache
    from sweeper.ledger import device_name
    from sweeper.store import Store

    cpu.prepare(settings["threads"])
    lane, mailbox = settings["lane"], settings["mailbox"]
    context = get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    device = get_device()
    cache = DataCache(Store(settings["store"], reached=True))
    nodes = _of_all_ranks(ray.get_runtime_context().get_node_id(), num_ranks)
    _warm_up(device)
    incarnation = ray.get(mailbox.enlist.remote(lane, os.getpid(), nodes)) if rank == 0 else 0
    while True:
        taken = ray.get(mailbox.take.remote(lane, incarnation)) if rank == 0 else None
        taken = _broadcast(taken, num_ranks)
        if taken is None:
            return
        job_id, packed = taken
        fatal: BaseException | None = None
        began = time.perf_counter()
        job, watchdog = pickle.loads(packed), Watchdog(settings["stall_s"])
        try:
            outcome = _run_job(job_id, job, cache=cache, device=device, mailbox=mailbox, lane=lane, watchdog=watchdog)
        except DataLost as error:
            outcome = {"state": "failed", "error": str(error), "is_fatal": True}
        except Exception as error:  # whatever one trial does wrong must not take the lane with it
            held_s = (time.perf_counter() - began) * num_ranks  # what failed held the device too
            outcome = {"state": "failed", "error": reason_of(error), "train_seconds": held_s}
            fatal = error if num_ranks > 1 else None
        finally:
            watchdog.off()
        outcome["device"] = device_name(device)
        _clean_up()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if rank == 0 or fatal is not None:
            ray.get(mailbox.finish.remote(lane, job_id, outcome))
        if fatal is not None:  # the other ranks wait in a collective call: only a new group can go on
            raise RuntimeError(f"trial {job_id} failed on one of {num_ranks} workers: {outcome['error']}")
