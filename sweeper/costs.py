"""Device-seconds of what a sweep does: how often each model runs, times what it takes.

How often follows from the plan and the space. What it takes was measured on this device (`calibration`), or is its
operations (`flops`) over what a slot is said to reach (`devices`). Where some models of a sort were measured and others
not, the others' counts are corrected by how far the counts of the measured ones were off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper import registry
from sweeper.calibration import Calibration
from sweeper.devices import Slot
from sweeper.fingerprint import fingerprint
from sweeper.plan import Artifact, Plan
from sweeper.space import Space, nested
from sweeper.timing import GeneratorRun, Run, Seconds, StudentRun, TeacherRun, essence
from sweeper.trial import StudentConfig, TrainConfig, TrialConfig

BATCH_S = 0.005  # what a batch costs besides its operations (views, optimiser, launches)
BACKWARD_FACTOR = 3.0  # forward and backward against forward alone
EVALUATION_BATCH = 256
PROBE_S = 2.0  # a linear probe's own fit, whatever the number of images of a small task
MOST_PROBED = 300  # images that a probe is timed on; more take as much longer as they are more
MOST_STUDENTS = 12  # counted at 0.1 s each; of more, so many are drawn evenly
PASSING = 0.5  # of generated images, a filter's verdict before any was seen: an assumption
CALL_S = 2.0  # a call that is counted to take longer is timed on fewer images


@dataclass(frozen=True)
class Estimate:
    """A run, what was counted for it (None: nothing could be), and what its like have in common."""

    run: Run
    counted: Seconds | None
    sort: str  # the family whose counts are off alike
    model: str  # and within it the model

    @property
    def named(self) -> tuple[str, str]:
        """The model among all sorts."""
        return self.sort, self.model


class Costs:
    """What the artifacts and trainings of a plan take on a slot.

    Args:
        calibration: None to count only.
    """

    def __init__(self, plan: Plan, space: Space, slot: Slot, calibration: Calibration | None = None) -> None:
        self.plan, self.slot, self.calibration = plan, slot, calibration
        self._flops: dict[tuple[str, str], float | None] = {}
        self._estimates: dict[str, Estimate] = {}
        self._taught: dict[tuple[bool, int], tuple[str, ...]] = {}
        self.num_classes = len(plan.index.class_names)
        self.size = int(plan.config.dataset.image_size)  # type: ignore[attr-defined]
        self.num_val = plan.index.split_counts()["val"]
        points = _points(space)
        kept = {fingerprint(point.student) for point in points}
        step = math.ceil(len(kept) / MOST_STUDENTS)
        drawn = set(sorted(kept)[::step])
        self.points = [point for point in points if fingerprint(point.student) in drawn]
        self._trainings = [self._training(point) for point in self.points]

    def calibrate(self, items: Iterable[Artifact], trainings_s: float, within_s: float, *, again: bool = False) -> None:
        """Time the models of these artifacts and of the trainings: what weighs most first, and each model once before
        its other losses.

        Args:
            trainings_s: that all trainings are thought to take.
        """
        if self.calibration is None:
            return
        weights: dict[tuple[str, str], float] = defaultdict(float)
        for item in items:
            weights[self._of(item).named] += self.artifact(item) or 0.0
        first: dict[tuple[str, str], Run] = {}
        for found in self._estimates.values():
            first.setdefault(found.named, found.run)
        students = [named for named in first if named[0] == "student"]
        weights |= {named: trainings_s / len(students) for named in students}
        ordered = sorted(first, key=lambda named: weights[named], reverse=True)
        chosen = [*(first[named] for named in ordered), *(found.run for found in self._estimates.values())]
        self.calibration.measure(chosen, within_s, again=again)

    def is_measured(self, item: Artifact) -> bool:
        """Whether its model was timed on this device."""
        return self._measured(self._of(item)) is not None

    @property
    def are_trainings_measured(self) -> bool:
        """Whether any student was timed on this device."""
        return any(self._measured(found) for found in self._estimates.values() if found.sort == "student")

    def is_filtered(self, item: Artifact) -> bool:
        """Whether some of what is drawn may be rejected."""
        return item.kind == "synthetic" and getattr(self.plan.config.synthetic[item.name], "filter", None) is not None

    def artifact(self, item: Artifact) -> float | None:
        """Seconds to build it; None where its model can be neither timed nor counted."""
        if item.kind == "synthetic":
            drawn = self._seconds(self._generator(item.name))
            source: Any = self.plan.config.synthetic[item.name]
            times = draws(source.filter.max_attempts) if self.is_filtered(item) else 1.0
            return None if drawn is None else drawn["image"] * item.units * times
        config: Any = self.plan.config.teachers[item.name]
        if item.kind == "adapt" and config.adapt == "none":
            return 0.0
        told = self._seconds(self._teacher(item.name))
        if told is None:
            return None
        if item.kind == "targets":
            return told["view"] * item.units
        from sweeper import adapt

        total: float = told["view"] * (item.units + self.num_val) + told["probe"] * max(1.0, item.units / MOST_PROBED)
        if config.adapt == "fine_tune":
            total += told["view"] * BACKWARD_FACTOR * config.fine_tune_steps * adapt.FINE_TUNE_BATCH
        return total

    def training(self) -> tuple[float, float] | None:
        """Mean seconds of a pre-training and of the task, over the points whose students are known."""
        found = []
        for parts in self._trainings:
            seconds = [self._recipe(*part) for part in parts]
            if all(value is not None for value in seconds):
                found.append((math.fsum(seconds[1:]), seconds[0]))  # type: ignore[arg-type]
        if not found:
            return None
        befores, tasks = zip(*found, strict=True)
        return math.fsum(befores) / len(found), math.fsum(tasks) / len(found)

    def _training(self, point: TrialConfig) -> list[tuple[Estimate, TrainConfig, int, int]]:
        """The task, and what comes before it: whose step, the recipe, and images to train and to validate on."""
        num_images = self.plan.num_train + self.plan.num_synthetic(point)
        parts = [(self._student(point, self.num_val), point.train, num_images, self.num_val)]
        first = point.pretraining
        if first is not None:
            parts.append((self._student(first, 0), first.train, self.plan.pools[point.pretrain.pool].units, 0))
        return parts

    def _recipe(self, found: Estimate, recipe: TrainConfig, num_images: int, num_val: int) -> float | None:
        """Of all epochs, each with its validation, and of making the model."""
        seconds = self._seconds(found)
        if seconds is None:
            return None
        num_steps = recipe.steps_per_epoch(num_images)
        timed: int = found.run.trial.train.batch_size  # type: ignore[attr-defined]
        step = seconds["step"] * recipe.batch_size / timed
        return seconds["make"] + recipe.epochs * (num_steps * step + num_val * seconds["validate"])

    def _student(self, trial: TrialConfig, num_val: int) -> Estimate:
        forward = self._student_flops(trial.student)
        trial = trial.resolved()
        members, separate = self.plan.config.members(trial.teacher), self.plan.config.embeds_separately(trial.teacher)
        live = 0.0
        if trial.is_online:
            live = math.fsum(self._teacher_flops(name) or 0.0 for name in members)
        else:  # of cached targets only their widths cost anything: the first teacher stands for all
            members = self._taught.setdefault((separate, len(members)), members)
        batch = trial.train.batch_size
        if forward is not None:
            batch = max(2, min(batch, int(CALL_S * self.slot.flops / (BACKWARD_FACTOR * forward + live))))
        reduced = essence(trial, batch)
        run = StudentRun(
            trial=reduced,
            teachers=tuple(self.plan.config.teachers[name] for name in members),
            is_separate=separate,
            num_classes=self.num_classes,
            image_size=self.size,
            views=self.plan.config.views,
            num_val=min(num_val, EVALUATION_BATCH),
        )
        counted = None
        if forward is not None:
            step = (
                BACKWARD_FACTOR * forward + live
            ) * batch / self.slot.flops + BATCH_S * batch / trial.train.batch_size
            counted = {"step": step, "validate": self._forward_s(forward), "make": 0.0}
        return self._kept(run, counted, "student", fingerprint(reduced.student))

    def _of(self, item: Artifact) -> Estimate:
        """The model that makes it."""
        return self._generator(item.name) if item.kind == "synthetic" else self._teacher(item.name)

    def _teacher(self, name: str) -> Estimate:
        config: Any = self.plan.config.teachers[name]
        flops = self._teacher_flops(name)
        columns = {
            c for (teacher, _), item in self.plan.targets.items() if teacher == name for c in item.spec["columns"]
        }
        num_train = min(self.plan.num_train, MOST_PROBED) if config.adapt != "none" else 0
        run = TeacherRun(
            config=config,
            columns=tuple(sorted(columns)),
            num_classes=self.num_classes,
            image_size=self.size,
            views=self.plan.config.views,
            batch=max(1, min(EVALUATION_BATCH, int(CALL_S * self.slot.flops / flops))) if flops else 1,
            num_train=num_train,
            num_val=min(self.num_val, MOST_PROBED) if num_train else 0,
        )
        counted = None if flops is None else {"view": self._forward_s(flops), "probe": PROBE_S}
        return self._kept(run, counted, "teacher", name)

    def _generator(self, name: str) -> Estimate:
        config: Any = self.plan.config.synthetic[name]
        flops = self._model_flops("generators", name, config)
        images = math.inf if not flops else CALL_S * self.slot.flops / flops  # that a call may draw
        timed, slowdown = {}, 1.0
        if images < getattr(config, "batch_size", 1):
            timed["batch_size"] = max(1, int(images))
        if images < 1 and hasattr(config, "steps"):
            timed["steps"] = max(1, int(config.steps * images))
            slowdown = config.steps / timed["steps"]
        run = GeneratorRun(
            config=config.model_copy(update=timed),
            class_names=tuple(self.plan.index.class_names),
            image_size=self.size,
            slowdown=slowdown,
        )
        counted = None if flops is None else {"image": self._forward_s(flops)}
        return self._kept(run, counted, "generator", name)

    def _forward_s(self, flops: float) -> float:
        """Seconds of an image's forward, in batches."""
        return flops / self.slot.flops + BATCH_S / EVALUATION_BATCH

    def _kept(self, run: Run, counted: Seconds | None, sort: str, model: str) -> Estimate:
        return self._estimates.setdefault(fingerprint(run.identity), Estimate(run, counted, sort, model))

    def _measured(self, found: Estimate) -> Seconds | None:
        return self.calibration.seconds(found.run) if self.calibration is not None else None

    def _seconds(self, found: Estimate) -> Seconds | None:
        measured = self._measured(found)
        if measured is not None or found.counted is None:
            return measured
        known = [e for e in self._estimates.values() if e.sort == found.sort and e.counted and self._measured(e)]
        ratios = [_ratio(self._measured(e) or {}, e.counted or {}) for e in known if e.model == found.model]
        ratios = ratios or [_ratio(self._measured(e) or {}, e.counted or {}) for e in known]
        factor = math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0
        return {name: value * factor for name, value in found.counted.items()}

    def _model_flops(self, family: str, name: str, config: Any) -> float | None:
        """What the kind's module counts of an image, where it does."""
        if (family, name) not in self._flops:
            count = getattr(registry.load(family, config.kind), "flops_an_image", None)
            self._flops[family, name] = count(config, self.plan.index.class_names) if count else None
        return self._flops[family, name]

    def _teacher_flops(self, name: str) -> float | None:
        return self._model_flops("teachers", name, self.plan.config.teachers[name])

    def _student_flops(self, config: StudentConfig) -> float | None:
        key = ("students", fingerprint(config))
        if key not in self._flops:
            from sweeper import student

            self._flops[key] = student.flops_an_image(config, self.num_classes, self.size)
        return self._flops[key]


def _ratio(measured: Seconds, counted: Seconds) -> float:
    """How far a count was off, by what it is mostly about."""
    main = next(iter(counted))
    return measured[main] / counted[main]


def _points(space: Space) -> list[TrialConfig]:
    """Every combination of what decides a training's length, other leaves at their defaults."""
    recipe = ["train.epochs", "train.epoch_size", "train.batch_size", "train.precision", "train.ema"]
    terms = ["loss.kl.weight", "loss.embedding.kind", "loss.embedding.weight"]
    paths = ["student", "synthetic.source", "synthetic.ratio", "teacher", *recipe, *terms]
    paths += ["pretrain.pool", "pretrain.teacher", *(f"pretrain.{path}" for path in (*recipe, *terms))]

    def is_of_a_kind(path: str, values: Mapping[str, Any]) -> bool:
        """A weight alone, where no embedding loss is chosen, is no section."""
        return not path.endswith("embedding.weight") or path.replace("weight", "kind") in values

    try:
        found = space.joint_finite(paths, interior=True)
        trees: Sequence[Any] = [nested({p: v for p, v in one.items() if is_of_a_kind(p, one)}) for one in found]
    except ValueError:  # more combinations than it lists: the corners stand for them
        trees = list(space.corners())
    # what cross-entropy weighs has no part in this, and is 0 at the open end of a range
    return [TrialConfig.model_validate({**tree, "loss": {**tree.get("loss", {}), "ce": 1.0}}) for tree in trees]


def draws(max_attempts: int) -> float:
    """Drawings of an image until one passes a filter that lets `PASSING` of them through, `max_attempts` at most."""
    return (1 - (1 - PASSING) ** max_attempts) / PASSING
