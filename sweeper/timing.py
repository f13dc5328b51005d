"""Times models for a forecast: a student's step, a teacher's forward, a generator's image, on made-up data.

They run through what a sweep runs (`train.Trainer`, `sources.view_targets`, a generator's `generate`), so that views,
losses and the optimiser count too. Weights are random: how long a model takes does not depend on them. No Ray here.

On a CPU it is the processor's time that counts, and not the clock: what others do on the machine just now is no
property of the model, and a measurement is kept for long.

A run is what is timed: its `identity` is all that its seconds depend on besides the device, and `measure` gives them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sweeper import registry
from sweeper.registry import Settings
from sweeper.trial import NO_TEACHER, StudentConfig, TrainConfig, TrialConfig
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    import torch

    from sweeper.batches import ImageSplit, TrialData
    from sweeper.sources import TargetSource

Seconds = Mapping[str, float]

SPAN_S = 0.25  # each figure is a median over so long, after a warm-up
MOST_IMAGES = 256  # that are made up
MOST_VIEWS = 8
STEPS = 4  # a made-up epoch
CLOCK_S = 1e-9  # what a clock tells apart


class Run(Protocol):
    """Something to time; picklable, so that it can be timed in another process."""

    @property
    def identity(self) -> dict[str, Any]: ...

    def measure(self, device: torch.device) -> Seconds: ...


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """Training steps of a student. `measure` gives `make` (a model and its optimiser), `step`, and `validate` an image.

    Attributes:
        trial: as `essence` leaves it; its batch size is the one that is timed.
        teachers: single ones, whose made-up targets it reads, or the one that runs in its loop.
    """

    trial: TrialConfig
    teachers: tuple[Settings, ...]
    is_separate: bool
    num_classes: int
    image_size: int
    views: ViewConfig
    num_val: int

    @property
    def student(self) -> StudentConfig:
        return self.trial.student

    @property
    def identity(self) -> dict[str, Any]:
        sizes = {"classes": self.num_classes, "size": self.image_size, "val": self.num_val}
        taught = {"teachers": [_named(teacher) for teacher in self.teachers], "separate": self.is_separate}
        return {"student": self.trial, "views": self.views, **sizes, **taught}

    def measure(self, device: torch.device) -> Seconds:
        from sweeper import train
        from sweeper.evaluate import accuracy

        recipe = {"epochs": 10**6, "epoch_size": STEPS * self.trial.train.batch_size}
        trial = self.trial.model_copy(update={"train": self.trial.train.model_copy(update=recipe)})
        data = self._data()
        trainer = train.Trainer(trial, data, seed=0, device=device, world=train.World())
        val, clock = data.val.to(device), clock_of(device)
        step = typical_s(trainer.run_epoch, clock) / STEPS
        validate = typical_s(lambda: accuracy(trainer.result, val), clock) / len(val)
        began = clock()
        train.Trainer(trial, data, seed=0, device=device, world=train.World())
        return {"make": clock() - began, "step": step, "validate": validate}

    def _data(self) -> TrialData:
        from sweeper.batches import TrialData

        num_images = min(MOST_IMAGES, 2 * self.trial.train.batch_size)
        views = self.views.model_copy(update={"per_image": min(MOST_VIEWS, self.views.per_image)})
        keys_N = np.arange(num_images, dtype=np.uint64)
        return TrialData(
            train=made_up(num_images, self.num_classes, self.image_size),
            keys_N=keys_N,
            num_real=num_images,
            source=self._source(keys_N, views),
            val=made_up(max(1, self.num_val), self.num_classes, self.image_size),
            test=None,
            class_names=tuple(map(str, range(self.num_classes))),
            image_size=self.image_size,
            views=views,
            view_seed=0,
        )

    def _source(self, keys_N: np.ndarray, views: ViewConfig) -> TargetSource | None:
        """Targets of the right shapes, or the teacher itself."""
        import torch

        from sweeper import sources
        from sweeper.losses import COLUMNS
        from sweeper.views import draw_views

        names = [str(i) for i in range(self.num_classes)]
        if self.trial.is_online:
            teacher = sketch(self.teachers[0], names)
            needs, num_maps = self.trial.needs, len(teacher.tap_points.maps) if "maps" in self.trial.needs else 0
            return sources.LiveTeacher(
                teacher=teacher, keys_N=keys_N, views=views, view_seed=0, needs=needs, num_maps=num_maps
            )
        members = []
        numbers_NV = np.tile(np.arange(views.per_image), (len(keys_N), 1))
        for config in self.teachers:
            with torch.device("meta"):
                width = sketch(config, names).embedding_dim
            columns = {
                name: torch.randn(*numbers_NV.shape, self.num_classes if name == "logits" else width).half()
                for name in sorted(self.trial.needs & COLUMNS)
            }
            members.append(
                sources.CachedTargets(
                    keys_N=keys_N,
                    views_NVP=draw_views(views, 0, keys_N, numbers_NV),
                    columns=columns,
                    classifiers=((torch.randn(self.num_classes, width), torch.zeros(self.num_classes)),),
                    widths=(width,),
                )
            )
        return sources.together(members, separate=self.is_separate) if members else None


def essence(trial: TrialConfig, batch_size: int) -> TrialConfig:
    """What the time of a step depends on: student, terms of the loss, precision; every weight that counts is 1.

    Args:
        trial: resolved.
    """
    kl = trial.loss.kl.model_copy(update={"weight": float(trial.loss.kl.weight > 0), "temperature": 4.0})
    embedding = trial.loss.embedding
    if embedding is not None and hasattr(embedding, "weight"):
        embedding = embedding.model_copy(update={"weight": 1.0})
    loss = trial.loss.model_copy(update={"ce": 1.0, "kl": kl, "embedding": embedding})
    student = trial.student.model_copy(update={"init": "random"})
    train = TrainConfig(batch_size=batch_size, precision=trial.train.precision, ema=0.9 if trial.train.ema else 0.0)
    teacher = trial.teacher if trial.teacher == NO_TEACHER else "any"  # which one, the run says
    return TrialConfig(teacher=teacher, student=student, loss=loss, train=train)


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A teacher's targets. `measure` gives `view` (a forward, its view and its targets), and `probe` if it is probed.

    Attributes:
        batch: images a forward. num_train, num_val: that its probe is fitted on; 0 without one.
    """

    config: Settings
    columns: tuple[str, ...]
    num_classes: int
    image_size: int
    views: ViewConfig
    batch: int
    num_train: int
    num_val: int

    @property
    def identity(self) -> dict[str, Any]:
        sizes = {"classes": self.num_classes, "size": self.image_size, "batch": self.batch}
        fitted = {"train": self.num_train, "val": self.num_val}
        return {"teacher": _named(self.config), "views": self.views, "columns": self.columns, **sizes, **fitted}

    def measure(self, device: torch.device) -> Seconds:
        from sweeper import sources
        from sweeper.views import draw_views

        teacher = sketch(self.config, [str(i) for i in range(self.num_classes)]).to(device)
        images_BCHW = made_up(self.batch, self.num_classes, self.image_size).images_BCHW
        numbers_B = np.arange(self.batch) % self.views.per_image
        boxes = draw_views(self.views, 0, np.arange(self.batch, dtype=np.uint64), numbers_B)
        columns = self.columns or ("embedding",)
        call = lambda: sources.view_targets(teacher, columns, images_BCHW, boxes, device)  # noqa: E731
        found = {"view": typical_s(call, clock_of(device)) / self.batch}
        if self.num_train:
            found["probe"] = self._probe(teacher.embedding_dim, device)
        return found

    def _probe(self, width: int, device: torch.device) -> float:
        """The fit on features that tell the classes apart, as those of a teacher worth probing do."""
        import torch

        from sweeper import probe

        centres_KD = torch.randn(self.num_classes, width)
        parts: list[torch.Tensor] = []
        for count in (max(self.num_train, self.num_classes), max(self.num_val, 1)):
            labels_N = torch.arange(count) % self.num_classes
            parts += [centres_KD[labels_N] + torch.randn(count, width), labels_N]
        clock = clock_of(device)
        began = clock()
        probe.fit(*parts, device=device)
        return clock() - began


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """Drawn images. `measure` gives seconds an `image` of as many steps as the configuration has.

    Attributes:
        config: as it is timed, perhaps in smaller batches and fewer steps. slowdown: by which an image of the real one
            takes longer.
    """

    config: Any
    class_names: tuple[str, ...]
    image_size: int
    slowdown: float = 1.0

    @property
    def identity(self) -> dict[str, Any]:
        named = registry.load("generators", self.config.kind).identity(self.config)
        sizes = {"classes": len(self.class_names), "size": self.image_size, "batch": self._batch}
        return {"generator": named, "slowdown": self.slowdown, **sizes}

    @property
    def _batch(self) -> int:
        return int(getattr(self.config, "batch_size", 1))

    def measure(self, device: torch.device) -> Seconds:
        kind = registry.load("generators", self.config.kind)
        generator = kind.build(self.config, device)
        labels = [i % len(self.class_names) for i in range(self._batch)]
        starts = None
        if hasattr(kind, "starts_from_images") and kind.starts_from_images(self.config):
            images_BCHW = made_up(self._batch, len(self.class_names), self.image_size).images_BCHW
            starts = list(images_BCHW.permute(0, 2, 3, 1).numpy())
        call = lambda: generator.generate(labels, self.class_names, list(range(self._batch)), starts)  # noqa: E731
        return {"image": typical_s(call, clock_of(device)) / self._batch * self.slowdown}


def sketch(config: Any, class_names: list[str]) -> Any:
    """A teacher of that architecture, its weights random."""
    return registry.load("teachers", config.kind).sketch(config, class_names)


def made_up(count: int, num_classes: int, size: int) -> ImageSplit:
    """Random images with labels in turn."""
    import torch

    from sweeper.batches import ImageSplit

    images_BCHW = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return ImageSplit(images_BCHW, torch.arange(count) % num_classes)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds that this process has had of the processor; of another device the clock's, once its queue is done."""
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        import torch

        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return synchronised


def typical_s(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds a call by this clock: the median of `SPAN_S` of them, after one that is not counted."""
    call()
    taken: list[float] = []
    while sum(taken) < SPAN_S:
        began = clock()
        call()
        taken.append(max(clock() - began, CLOCK_S))
    return statistics.median(taken)


def _named(config: Any) -> dict[str, Any]:
    """What a teacher is; how it is adapted is another matter."""
    named: dict[str, Any] = registry.load("teachers", config.kind).identity(config)
    return {name: value for name, value in named.items() if name != "adapt"}
