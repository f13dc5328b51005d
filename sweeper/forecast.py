"""What a sweep should cost before it starts: device-seconds of what is missing, of the search and of the finalists.

Where the store knows how long this teacher or generator took, that is scaled; else its operations are counted
(`flops`) and divided by what models of this size reach on a slot. What can not be counted, such as a pipeline that is
not on disk yet, is called unknown instead of being guessed. Nothing is built and no weight is read.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeper import registry
from sweeper.config import ResourceConfig, SweepConfig
from sweeper.fingerprint import fingerprint
from sweeper.plan import Artifact, Plan
from sweeper.space import Space, nested
from sweeper.store import Record, Store
from sweeper.tables import duration
from sweeper.trial import StudentConfig, TrainConfig, TrialConfig, most_epochs

if TYPE_CHECKING:
    from sweeper.student import Student

# What forwards and backwards reach on one slot, and what a batch costs besides (views, optimiser, launches).
# One thread of a 2025 server core: 19 to 27 GFLOP/s training the students of search_spaces/ (benchmarks/README.md).
RATE_CPU_FLOPS, RATE_GPU_FLOPS = 2e10, 1e13
BATCH_S = 0.005
BACKWARD_FACTOR = 3.0  # forward and backward against forward alone
EVALUATION_BATCH = 256
PROBE_S = 2.0  # a linear probe's own fit, whatever the number of images of a small task
START_S = 30.0  # of the wall clock, on two cores: Ray, the stages' workers, the lanes
MOST_STUDENTS = 12  # counted at 0.1 s each; of more, so many are drawn evenly
TITLES = {"adapt": "teachers"}
WIDTH, INDENT, HARD_SPACE = 99, 13, "\xa0"


@dataclass(frozen=True)
class Forecast:
    """Device-seconds by stage, in the order of the work, and what they rest on.

    Attributes:
        measured: stages that the store knew; the others were counted.
        unknown: what is left out, for people.
        slot: `CPU` or `GPU`.
        lanes: how many trainings run at a time, where that is known.
    """

    seconds: dict[str, float]
    measured: tuple[str, ...]
    unknown: tuple[str, ...]
    slot: str
    lanes: int | None

    @property
    def total(self) -> float:
        return math.fsum(self.seconds.values())

    @property
    def rate_flops(self) -> float:
        """Operations a second of one slot."""
        return RATE_GPU_FLOPS if self.slot == "GPU" else RATE_CPU_FLOPS

    @property
    def wall_s(self) -> float | None:
        """On the clock, with the start of Ray and the lanes."""
        return None if self.lanes is None else START_S + self.total / self.lanes

    def lines(self) -> list[str]:
        """For the header, at most `WIDTH` columns wide."""
        parts = ", ".join(f"{TITLES.get(name, name)} {_time(s)}" for name, s in self.seconds.items() if s > 0)
        said = f"{_time(self.total)} of device time: {parts or 'nothing'}"
        if self.wall_s is not None:
            said += f"; about {_time(self.wall_s)} on {self.lanes} lane{'s' if self.lanes != 1 else ''}"
        said += f" at {self.rate_flops / 1e9:,.0f} GFLOP/s a {self.slot} slot"
        if self.measured:
            said += f", {' and '.join(TITLES.get(name, name) for name in self.measured)} as measured before"
        if self.unknown:
            said += f"; not known: {', '.join(self.unknown)}"
        lines = textwrap.wrap(said, WIDTH, initial_indent="  forecast   ", subsequent_indent=" " * INDENT)
        return [line.replace(HARD_SPACE, " ") for line in lines]


def _time(seconds: float) -> str:
    """A duration that no line break tears."""
    return duration(seconds).replace(" ", HARD_SPACE)


def forecast(plan: Plan, space: Space, store: Store, *, is_local: bool = True) -> Forecast:
    """Device-seconds that the missing artifacts, the search and the finalists should take.

    Args:
        is_local: the run starts Ray on this machine, so that its number of lanes can be told.
    """
    import torch

    slot = "GPU" if torch.cuda.is_available() else "CPU"
    seconds: dict[str, float] = {}
    measured: list[str] = []
    unknown: list[str] = []
    past = _Past(plan, store, "cpu" if slot == "CPU" else torch.cuda.get_device_name())
    counted = _Counted(plan, slot)
    for item in plan.missing(store):
        if item.kind == "images":  # decoding is nobody's device time
            continue
        known = past.seconds(item)
        found = known if known is not None else counted.seconds(item)
        if found is None:
            unknown.append(f"{TITLES.get(item.kind, item.kind)} of {item.name}")
            continue
        if known is not None:
            measured.append(item.kind)
        seconds[item.kind] = seconds.get(item.kind, 0.0) + found
    training = _training_seconds(plan, _points(space), counted)
    lanes = _local_lanes(plan.config, slot) if is_local else None
    if training is None:
        unknown.append("training")
    else:
        shared = math.fsum(seconds.values())
        seconds["search"], seconds["finalists"] = _search_seconds(plan.config, space, training, shared, lanes or 1)
    return Forecast(seconds, tuple(dict.fromkeys(measured)), tuple(dict.fromkeys(unknown)), slot, lanes)


class _Past:
    """What the store's artifacts took on a device like this one."""

    def __init__(self, plan: Plan, store: Store, device: str) -> None:
        self.makers = {item.key: item.spec["teacher"] for item in plan.adapt.values()}
        records = [r for r in store.records() if r.kind != "images"] if plan.missing(store) else []
        self.makers |= {r.key: r.spec["teacher"] for r in records if r.kind == "adapt"}
        self.groups: dict[str, list[Record]] = {}
        for record in records:
            if record.charge is not None and record.charge.device == device and record.charge.units:
                self.groups.setdefault(self._group(record), []).append(record)

    def _group(self, made: Artifact | Record) -> str:
        """Artifacts of one kind by one teacher or generator."""
        if made.kind == "targets":
            return fingerprint([made.kind, self.makers.get(made.spec["adapt"])])
        return fingerprint([made.kind, made.spec["teacher" if made.kind == "adapt" else "generator"]])

    def seconds(self, item: Artifact) -> float | None:
        """The seconds a unit of its like, without what does not grow with the images."""
        charges = [record.charge for record in self.groups.get(self._group(item), ()) if record.charge]
        if not charges:
            return None
        fixed = PROBE_S if item.kind == "adapt" else 0.0
        grows = math.fsum(max(0.0, charge.seconds - fixed) for charge in charges) / sum(c.units for c in charges)
        return min(fixed, min(c.seconds for c in charges)) + grows * item.units


def _seconds(flops: float, num_batches: float, slot: str) -> float:
    return flops / (RATE_GPU_FLOPS if slot == "GPU" else RATE_CPU_FLOPS) + num_batches * BATCH_S


class _Counted:
    """Device-seconds of artifacts by the operations of the models that make them, each counted once."""

    def __init__(self, plan: Plan, slot: str) -> None:
        self.plan, self.slot = plan, slot
        self.known: dict[tuple[str, str], float | None] = {}

    def flops_an_image(self, family: str, name: str, config: Any) -> float | None:
        """What the kind's module counts, where it does."""
        if (family, name) not in self.known:
            count = getattr(registry.load(family, config.kind), "flops_an_image", None)
            self.known[family, name] = count(config, self.plan.index.class_names) if count else None
        return self.known[family, name]

    def seconds(self, item: Artifact) -> float | None:
        """None where the model can not be counted."""
        if item.kind == "synthetic":
            flops = self.flops_an_image("generators", item.name, self.plan.config.synthetic[item.name])
        else:
            config: Any = self.plan.config.teachers[item.name]
            flops = self.flops_an_image("teachers", item.name, config)
        if flops is None:
            return None
        if item.kind != "adapt":
            return _seconds(flops * item.units, item.units / EVALUATION_BATCH, self.slot)
        return 0.0 if config.adapt == "none" else self._adapt_seconds(config.adapt, flops, item.units)

    def live_flops(self, trial: TrialConfig) -> float:
        """Operations of the teachers that a trial runs in its loop, on one image; 0 where none does or none counts."""
        members = self.plan.config.members(trial.teacher) if trial.is_online else ()
        teachers = self.plan.config.teachers
        return math.fsum(self.flops_an_image("teachers", name, teachers[name]) or 0.0 for name in members)

    def _adapt_seconds(self, way: str, flops: float, num_train: int) -> float:
        from sweeper import adapt

        num_images = num_train + self.plan.index.split_counts()["val"]
        total = PROBE_S + _seconds(flops * num_images, num_images / adapt.BATCH, self.slot)
        if way == "fine_tune":
            work = BACKWARD_FACTOR * flops * adapt.FINE_TUNE_STEPS * adapt.FINE_TUNE_BATCH
            total += _seconds(work, adapt.FINE_TUNE_STEPS, self.slot)
        return total


def _points(space: Space) -> list[TrialConfig]:
    """Every combination of what decides a training's length, other leaves at their defaults."""
    paths = ["student", "synthetic.source", "synthetic.ratio", "train.epochs", "train.epoch_size", "train.batch_size"]
    paths += ["pretrain.pool", "pretrain.teacher", *(f"pretrain.{path}" for path in paths if path.startswith("train."))]
    paths += ["teacher", "loss.embedding.kind", "pretrain.loss.embedding.kind"]  # who may run in the loop
    try:
        trees = [nested(values) for values in space.joint_finite(paths, interior=True)]
    except ValueError:  # more combinations than it lists: the corners stand for them
        trees = list(space.corners())
    # what cross-entropy weighs has no part in this, and is 0 at the open end of a range
    return [TrialConfig.model_validate({**tree, "loss": {**tree.get("loss", {}), "ce": 1.0}}) for tree in trees]


def _training_seconds(plan: Plan, points: Sequence[TrialConfig], counted: _Counted) -> tuple[float, float] | None:
    """Mean device-seconds of a pre-training and of the task, over the points whose students can be counted."""
    students = {fingerprint(point.student): point.student for point in points}
    step = math.ceil(len(students) / MOST_STUDENTS)
    size = int(plan.config.dataset.image_size)  # type: ignore[attr-defined]
    flops = {key: student_flops(students[key], len(plan.index.class_names), size) for key in list(students)[::step]}
    num_val = plan.index.split_counts()["val"]
    found = []
    for point in points:
        forward = flops.get(fingerprint(point.student))
        if forward is None:
            continue
        num_images = plan.num_train + plan.num_synthetic(point)
        task = _recipe_seconds(point.train, forward, num_images, num_val, counted.slot, counted.live_flops(point))
        before = 0.0
        if point.pretraining is not None:
            first, pool = point.pretraining, plan.pools[point.pretrain.pool].units
            before = _recipe_seconds(first.train, forward, pool, 0, counted.slot, counted.live_flops(first))
        found.append((before, task))
    if not found:
        return None
    befores, tasks = zip(*found, strict=True)
    return math.fsum(befores) / len(found), math.fsum(tasks) / len(found)


def _recipe_seconds(
    recipe: TrainConfig, forward: float, num_images: int, num_val: int, slot: str, live: float
) -> float:
    """Of all epochs, each with its validation.

    Args:
        forward, live: operations of the student and of a teacher in the loop on one image.
    """
    num_steps = math.ceil((recipe.epoch_size or num_images) / recipe.batch_size)
    work = forward * (BACKWARD_FACTOR * num_steps * recipe.batch_size + num_val)
    work += live * num_steps * recipe.batch_size
    return recipe.epochs * _seconds(work, num_steps + num_val / EVALUATION_BATCH, slot)


def student_flops(config: StudentConfig, num_classes: int, image_size: int) -> float | None:
    """Operations of a student's forward on one image."""
    import torch

    from sweeper import flops, student

    def make() -> Student:
        return student.build(config.model_copy(update={"init": "random"}), num_classes, image_size, seed=0)

    return flops.forward_flops(make, lambda model: model(torch.empty(1, 3, image_size, image_size)))


def _search_seconds(
    config: SweepConfig, space: Space, training: tuple[float, float], shared: float, lanes: int
) -> tuple[float, float]:
    """Device-seconds of the search, its scheduler's early stops expected, and of the finalists.

    Args:
        training: mean seconds of a pre-training, which no scheduler stops, and of a whole training on the task.
        shared: seconds of the artifacts, in a budget of GPU-hours. lanes: filled while a budget on the clock lasts.
    """
    scheduler: Any = config.search.scheduler
    share: Callable[..., float] | None = getattr(registry.load("schedulers", scheduler.kind), "expected_share", None)
    max_epochs = most_epochs(space.corners())
    before, task = training
    budgets = []
    if config.search.trials is not None:
        budgets.append(config.search.trials * (before + task * (share(scheduler, max_epochs) if share else 1.0)))
    budgets += [max(0.0, config.search.gpu_hours * 3600 - shared)] if config.search.gpu_hours is not None else []
    budgets += [config.search.wall_hours * 3600 * lanes] if config.search.wall_hours is not None else []
    final = config.finalists
    num_arms = 2 + bool(config.pools) if final.ablate and config.teachers else 0  # one more is a finalist, as a rule
    return min(budgets), (final.count + num_arms) * final.seeds * (before + task)


def _local_lanes(config: SweepConfig, slot: str) -> int:
    """Lanes that this machine holds, as `slots.plan_lanes` will find."""
    resources: ResourceConfig = config.resources
    workers = resources.workers_per_trial
    num_lanes = len(os.sched_getaffinity(0)) // (resources.cpus_per_trial * workers)
    if slot == "GPU" and resources.gpus_per_trial:
        import torch

        num_lanes = min(num_lanes, int(torch.cuda.device_count() / (resources.gpus_per_trial * workers)))
    return max(1, min(num_lanes, config.search.trials or num_lanes))
