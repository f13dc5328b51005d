"""What a trial's start costs: in a lane, and as a Ray Train run of its own under Ray Tune.

    python benchmarks/turnaround.py

Both sides run the same trials, `train.fit` on the embedded digits until the training clock reaches `--seconds`, as many
at a time as the machine has slots:

- **lanes**: `search.run` over a `LanePool`, exactly as `sweeper run` does, Optuna and its journal included;
- **trainers**: the pattern of Ray's documentation, a Tune function that runs one `TorchTrainer` with
  `TuneReportCallback`. It gets what makes it fastest: health checks every 0.2 s instead of 2 s (when Train drains its
  reports), one report a trial, a trial in each slot, a Tune function that holds no CPU, reused actors, no sampler.

The gap is the time from a trial's last report to the first training step of the next one in the same slot. Both sides
report every epoch to one stopwatch actor; a first step is the first report's time less the training time that it
reports, so that the way to the actor is in both ends and cancels. Wall time is the whole sweep's, with the lanes' start
and end, and without the start of Ray. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.config import SearchConfig, SweepConfig
from sweeper.lane import HEALTH_CHECK_INTERVAL_S
from sweeper.mailbox import Mailbox, Message
from sweeper.slots import LanePlan, plan_lanes
from sweeper.worker import Job, MailboxSlot

BATCH_SIZE, EPOCH_SIZE = 64, 320
CONFIG: dict[str, Any] = {
    "name": "turnaround",
    "dataset": {"kind": "digits", "train_per_class": 10},
    "trial": {
        "student": {"model": "test_efficientnet"},
        "train": {
            "epochs": 100_000,  # the stopwatch ends a trial
            "epoch_size": EPOCH_SIZE,
            "batch_size": BATCH_SIZE,
            "schedule": "constant",
            "lr": {"loguniform": [1e-3, 1e-2]},
        },
    },
}
DRIVER_BYTES = 16 * 2**20


class Stopwatch(Mailbox):
    """A mailbox that notes when each report comes, and ends a trial once it has trained for `seconds`."""

    seconds = 2.0

    async def report(self, lane: str, job_id: str, report: Message) -> None:
        """See `Mailbox.report`."""
        await super().report(lane, job_id, {**report, "time": time.time()})
        if report["train_seconds"] >= self.seconds:
            await self.stop(job_id)

    async def goes_on(self, name: str, report: Message) -> bool:
        """Take the report of a trial that is not a job of this mailbox, and say whether it goes on."""
        await self.report("", name, report)
        return bool(report["train_seconds"] < self.seconds)


@dataclass(frozen=True)
class Span:
    """One trial on the wall clock: its first training step and its last report, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Side:
    """What one side measured."""

    spans: list[Span]
    wall_s: float
    slots: int

    @property
    def gap_s(self) -> float:
        """Median over all trials that follow another one in their slot."""
        return statistics.median(gaps(self.spans, self.slots))


def spans(events: Iterable[Message]) -> list[Span]:
    """The trials in the stopwatch's events, by their first step."""
    found: dict[str, Span] = {}
    for event in events:
        if event["type"] == "report":
            begun = found.get(event["job"], Span(event["time"] - event["train_seconds"], 0.0))
            found[event["job"]] = Span(begun.start, event["time"])
    return sorted(found.values(), key=lambda span: span.start)


def gaps(trials: Sequence[Span], slots: int) -> list[float]:
    """Seconds that a slot trained nothing: the trial that starts as number k + slots takes the k-th slot to be free."""
    ends = sorted(span.end for span in trials)
    return [span.start - end for span, end in zip(trials[slots:], ends, strict=False)]


def in_lanes(plan: LanePlan, job: Job, config: SweepConfig, store_uri: str, work: Path, watch: type[Stopwatch]) -> Side:
    """The sweep as `sweeper run` does it."""
    import ray

    from sweeper import search
    from sweeper.desk import Desk
    from sweeper.lane import LanePool
    from sweeper.ledger import Cost
    from sweeper.space import Space
    from sweeper.study import Study

    book = Study(work / "journal.log", config.search, Space(config.trial), seed=0)
    desk = Desk(book, config.search, lambda trial, seconds: Cost(train=seconds), 0.0)
    hooks = search.Hooks(
        lambda trial: Job(**{**vars(job), "config": trial.model_dump(mode="json")}), lambda event: None
    )
    begun = time.perf_counter()
    with LanePool(plan, store_uri, work, watch) as pool:
        search.run(desk, pool, CONFIG["trial"]["train"]["epochs"], hooks, work, work / "rungs.jsonl")
        events = ray.get(pool.mailbox.events_since.remote(0))
    return Side(spans(events), time.perf_counter() - begun, plan.num_lanes)


def train_alone(settings: dict[str, Any]) -> None:
    """The worker of one `TorchTrainer`: one trial through the same loop, data and clock as in a lane."""
    import ray
    import torch
    from ray.train import report as report_to_ray
    from ray.train.torch import get_device

    from sweeper import train
    from sweeper.data_cache import DataCache
    from sweeper.store import Store
    from sweeper.trial import TrialConfig

    torch.set_num_threads(settings["threads"])
    job, name, watch = settings["job"], settings["name"], settings["watch"]
    config = TrialConfig.model_validate(job.config)
    data = DataCache(Store(settings["store"])).trial_data(
        job.refs, needs=config.needs, view_config=job.views, view_seed=job.view_seed, with_test=False
    )
    outcome = train.fit(
        config,
        data,
        seed=job.seed,
        device=get_device(),
        report=lambda done: bool(ray.get(watch.goes_on.remote(name, asdict(done)))),
        slot=MailboxSlot(watch, name, job.identity, 1),
        keep_model=False,
    )
    report_to_ray({"accuracy": outcome.accuracy_val, "epoch": outcome.epochs})


def one_trainer(settings: dict[str, Any]) -> None:
    """The Tune function of one trial."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    name = tune.get_context().get_trial_id()
    job = settings["job"]
    recipe = {**job.config["train"], "lr": settings["lr"]}
    resources = {"CPU": settings["threads"], **({"GPU": settings["gpus"]} if settings["gpus"] else {})}
    TorchTrainer(
        train_alone,
        train_loop_config={
            **settings,
            "name": name,
            "job": Job(**{**vars(job), "config": {**job.config, "train": recipe}}),
        },
        scaling_config=ScalingConfig(num_workers=1, use_gpu=settings["gpus"] > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, storage_path=settings["work"], callbacks=[TuneReportCallback()]),
    ).fit()


def as_trainers(
    plan: LanePlan, job: Job, config: SweepConfig, store_uri: str, work: Path, watch: type[Stopwatch]
) -> Side:
    """The sweep as one Ray Train run a trial."""
    import ray
    from ray import tune

    stopwatch: Any = ray.remote(num_cpus=0, max_concurrency=100)(watch).remote(str(work / "checkpoints"))
    driver = tune.PlacementGroupFactory([{"CPU": 0, "memory": DRIVER_BYTES}])
    low, high = CONFIG["trial"]["train"]["lr"]["loguniform"]
    settings = {"store": store_uri, "threads": plan.cpus, "gpus": plan.gpus, "watch": stopwatch, "job": job}
    begun = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(one_trainer, driver),
        param_space={**settings, "work": str(work / "train"), "lr": tune.loguniform(low, high)},
        tune_config=tune.TuneConfig(
            num_samples=config.search.trials or 1, max_concurrent_trials=plan.num_lanes, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="trainers", storage_path=str(work / "tune"), verbose=0),
    ).fit()
    wall_s = time.perf_counter() - begun
    for error in results.errors:
        raise error
    return Side(spans(ray.get(stopwatch.events_since.remote(0))), wall_s, plan.num_lanes)


def prepare(trials: int, folder: Path) -> tuple[SweepConfig, str, Job]:
    """The sweep's configuration, a store that holds its images, and a job of its first corner."""
    from sweeper import ingest, registry
    from sweeper.batches import DataRefs
    from sweeper.plan import make_plan
    from sweeper.space import Space
    from sweeper.store import Store
    from sweeper.trial import TrialConfig

    config = SweepConfig.model_validate({**CONFIG, "search": SearchConfig(trials=trials)})
    dataset: Any = config.dataset
    index = registry.load("datasets", dataset.kind).index(dataset, 0)
    store = Store(str(folder / "store"))
    space = Space(config.trial)
    images = ingest.build(store, make_plan(config, space, index, store).images, dataset, index)
    trial = TrialConfig.model_validate(next(iter(space.corners()))).resolved()
    settings, refs = trial.model_dump(mode="json"), DataRefs(images=images.key)
    return config, store.uri, Job(config=settings, refs=refs, views=config.views, view_seed=0, seed=0)


def quiet() -> None:
    """Neither side may print."""
    os.environ |= {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "64",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": HEALTH_CHECK_INTERVAL_S,
    }
    for name in ("ray", "ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)


def table(figures: dict[str, Any]) -> str:
    """Three lines for people."""
    rows = [("", "in lanes", "a TorchTrainer a trial", "ratio")]
    for title, key in (("median gap between trials", "gap"), ("wall time of the sweep", "wall")):
        lane_s, trainer_s = figures[f"lane_{key}_s"], figures[f"trainer_{key}_s"]
        rows.append((title, f"{lane_s:.3f} s", f"{trainer_s:.3f} s", f"{figures[f'{key}_ratio']:.1f} x"))
    return "\n".join(f"{a:<28}{b:>12}{c:>26}{d:>12}" for a, b, c, d in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0, help="training time of a trial")
    parser.add_argument("--json-only", action="store_true")
    options = parser.parse_args(arguments)
    quiet()
    import ray

    from sweeper.config import ResourceConfig
    from sweeper.session import session

    class Watch(Stopwatch):
        seconds = options.seconds

    with tempfile.TemporaryDirectory() as name, session(None, Path(name) / "ray.log"):
        folder = Path(name)
        (folder / "lanes").mkdir()
        config, store_uri, job = prepare(options.trials, folder)
        plan = plan_lanes(ResourceConfig(), ray.cluster_resources(), options.trials)
        if options.trials <= plan.num_lanes:
            parser.error(f"--trials: {options.trials} trials in {plan.num_lanes} slots leave no gap to measure")
        if not options.json_only:
            print(f"{options.trials} trials of {options.seconds:g} s, {plan.num_lanes} x {plan.each}", flush=True)
        lane = in_lanes(plan, job, config, store_uri, folder / "lanes", Watch)
        trainer = as_trainers(plan, job, config, store_uri, folder / "trainers", Watch)
    if len(lane.spans) != options.trials or len(trainer.spans) != options.trials:
        sys.exit(f"{len(lane.spans)} and {len(trainer.spans)} of {options.trials} trials trained: nothing to compare")
    figures = {
        "lane_gap_s": round(lane.gap_s, 4),
        "trainer_gap_s": round(trainer.gap_s, 3),
        "gap_ratio": round(trainer.gap_s / lane.gap_s, 1),
        "lane_wall_s": round(lane.wall_s, 2),
        "trainer_wall_s": round(trainer.wall_s, 2),
        "wall_ratio": round(trainer.wall_s / lane.wall_s, 2),
        "trials": options.trials,
        "trial_s": options.seconds,
    }
    if not options.json_only:
        print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
