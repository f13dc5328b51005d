"""The training loop of a student: plain torch, one trial from its first step to its outcome.

It knows neither Ray nor Optuna: it reports to a callable that answers whether to go on, and keeps its state in a slot
that can load and save bytes. What it descends on is `objective`; the teacher's side comes ready from `batches`, for the
very view that the student sees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sweeper import student as students
from sweeper.averaging import WeightAverage
from sweeper.batches import ImageSplit, TrialData
from sweeper.checkpoints import Checkpoints, Slot, load_moments, moments, packed, state_of
from sweeper.evaluate import Confusion, accuracy, accuracy_of, confusion
from sweeper.feeding import BatchStream
from sweeper.gradient import Gradient
from sweeper.learning_rate import learning_rate_factor
from sweeper.objective import Objective
from sweeper.outcome import EpochReport, Outcome, TrialFailed
from sweeper.trial import TrainConfig, TrialConfig

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class World:
    """This process among those that train the trial together; `wrap` makes the model data-parallel."""

    rank: int = 0
    num_ranks: int = 1
    wrap: Callable[[nn.Module], nn.Module] | None = None


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """Channels last, where convolutions train faster so: 1.3 to 2 times on a CPU; on tensor cores in mixed precision.

    Not on a CPU in bf16: oneDNN's weight gradient of a depthwise convolution of stride 2 on a single pixel is then made
    of memory that nobody wrote (torch 2.15), and may be NaN.
    """
    is_faster = (device.type == "cuda") == (precision == "bf16")
    return torch.channels_last if is_faster else torch.contiguous_format


def optimizer(parameters: Iterable[nn.Parameter], recipe: TrainConfig) -> torch.optim.AdamW:
    """AdamW in one pass over all parameters: the loop over them took 5 to 15% of a step on a CPU."""
    return torch.optim.AdamW(parameters, lr=recipe.lr, betas=BETAS, weight_decay=recipe.weight_decay, fused=True)


class Trainer:
    """State of one trial: model, optimiser, progress. `fit` drives it; its state can be carried over a restart."""

    def __init__(
        self,
        config: TrialConfig,
        data: TrialData,
        *,
        seed: int,
        device: torch.device,
        world: World,
        is_first: bool = False,
    ) -> None:
        entered = time.perf_counter()
        torch.manual_seed(seed)
        self.is_first = is_first  # of two trainings
        self.config, self.device, self.world = config, device, world
        recipe = config.train
        student = students.build(config.student, len(data.class_names), data.image_size, seed).to(device)
        student = student.to(memory_format=memory_format(device, recipe.precision))
        self.data = data = replace(data, image_size=student.image_size)
        self.stream = BatchStream(
            data,
            batch_size=recipe.batch_size,
            seed=seed,
            device=device,
            rank=world.rank,
            num_ranks=world.num_ranks,
        )
        self.student = student
        self.average = WeightAverage(student, recipe.ema).to(device) if recipe.ema else None
        self.objective = Objective(student, config, replace(data, source=self.stream.source)).to(device)
        self.model = world.wrap(self.objective) if world.wrap else self.objective
        self.gradient = Gradient(self.model, self.stream, recipe.precision, can_halve=world.num_ranks == 1)
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = optimizer(trained, recipe)
        self.steps_per_epoch = recipe.steps_per_epoch(len(data.train))
        self.num_steps = self.steps_per_epoch * recipe.epochs
        self.epoch = 0
        self.seconds = 0.0
        self.pretrain_seconds = 0.0
        self.curve: list[tuple[int, float, float, float]] = []
        self.last_loss = math.nan
        self.last_accuracy = math.nan
        self.seconds = (self.synchronised() - entered) * world.num_ranks  # making a model holds the device too

    @property
    def result(self) -> students.Student:
        """What the training has made so far: the student, or the average of its weights."""
        return self.average.student if self.average is not None else self.student

    def go_on_from(self, first: Trainer) -> None:
        """Take over the student of the pre-training, and what it cost."""
        self.student.load_state_dict(first.result.state_dict())
        self.seconds += first.seconds
        self.pretrain_seconds = first.seconds

    def timed_epoch(self, val: ImageSplit | None = None) -> None:
        """One epoch and, on the task, its validation; their device-seconds are those of all ranks."""
        started = self.synchronised()
        self.run_epoch()
        if val is not None:
            self.last_accuracy = accuracy(self.result, val)
        self.seconds += (self.synchronised() - started) * self.world.num_ranks
        if val is not None:
            self.curve.append((self.epoch, self.last_accuracy, self.last_loss, self.seconds))

    def run_epoch(self) -> None:
        """One epoch of steps; raises TrialFailed when the loss is not finite."""
        recipe = self.config.train
        self.model.train()
        first = self.epoch * self.steps_per_epoch
        total = torch.zeros((), device=self.device)
        self.stream.will_read((first + self.steps_per_epoch) * recipe.batch_size)
        for step in range(first, first + self.steps_per_epoch):
            factor = learning_rate_factor(step, self.num_steps, recipe.warmup, recipe.schedule)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.lr * factor
            total += self.gradient.of(step * recipe.batch_size, step / self.num_steps)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.student)
        self.objective.settle(self.result)
        self.epoch += 1
        self.last_loss = float(total) / self.steps_per_epoch
        if not math.isfinite(self.last_loss):
            when = "pre-training: " if self.is_first else ""
            raise TrialFailed(f"{when}the loss became {self.last_loss} in epoch {self.epoch} of {recipe.epochs}")

    def state_bytes(self) -> bytes:
        """Everything that a restarted worker needs to go on exactly here."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors: dict[str, dict[str, torch.Tensor]] = {
            "objective": self.objective.state_dict(),
            "optimizer": moments(self.optimizer),
            "average": self.average.state_dict() if self.average is not None else {},
            "generators": generators,
        }
        facts = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "pretrain_seconds": self.pretrain_seconds,
            "is_first": self.is_first,
            "loss": self.last_loss,
            "accuracy": self.last_accuracy,
            "curve": self.curve,
        }
        return packed(tensors, facts)

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Take up the state that `state_bytes` gave and `state_of` read."""
        self.objective.load_state_dict(saved["objective"])
        load_moments(self.optimizer, saved.get("optimizer", {}))  # none before the first step
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.epoch = saved["epoch"]
        self.seconds += saved["seconds"]  # making this one is paid as well
        self.pretrain_seconds = saved["pretrain_seconds"]
        self.curve = [tuple(row) for row in saved["curve"]]
        self.last_loss, self.last_accuracy = saved["loss"], saved["accuracy"]
        torch.set_rng_state(saved["generators"]["cpu"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["generators"]["cuda"].cpu(), self.device)

    def synchronised(self) -> float:
        """Seconds on the clock once the device has finished its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def report(self) -> EpochReport:
        """The state after the epoch that was just run."""
        return EpochReport(
            epoch=self.epoch,
            epochs=self.config.train.epochs,
            accuracy_val=self.last_accuracy,
            loss=self.last_loss,
            train_seconds=self.seconds,
            pretrain_seconds=self.pretrain_seconds,
        )

    def outcome(self, state: str, test: Confusion | None, model: dict[str, bytes]) -> Outcome:
        """How the trial ended."""
        return Outcome(
            state=state,
            epochs=self.epoch,
            accuracy_val=self.last_accuracy,
            accuracy_test=None if test is None else accuracy_of(test),
            train_seconds=self.seconds,
            params=self.student.num_parameters,
            pretrain_seconds=self.pretrain_seconds,
            parts=self.gradient.parts,
            curve=self.curve,
            confusion=test or [],
            model=model,
        )


def fit(
    config: TrialConfig,
    data: TrialData,
    *,
    seed: int,
    device: torch.device,
    report: Callable[[EpochReport], bool],
    slot: Slot,
    pool: TrialData | None = None,
    until: int | None = None,
    world: World | None = None,
    with_test: bool = False,
    keep_model: bool = True,
) -> Outcome:
    """Train one student, from its checkpoint where there is one.

    Args:
        config: a resolved point of the space.
        report: told after each epoch on the task; False asks the loop to stop.
        slot: where checkpoints go; saved after an epoch when that costs little.
        pool: what `config.pretraining` is trained on first, if there is such.
        until: the epoch after which the training is complete, its schedule unchanged; None for the recipe's last.
        with_test: evaluate the finished student once on the test split (finalists only).

    Raises:
        TrialFailed: the loss is not finite.
    """
    world = world or World()
    checkpoints = Checkpoints(slot, world.rank)
    state = slot.load()
    saved = None if state is None else state_of(state, device)
    trainer = Trainer(config, data, seed=seed, device=device, world=world)
    assert (pool is None) == (config.pretraining is None), "a pre-training comes with its pool"
    if pool is not None and (saved is None or saved["is_first"]):
        # the student keeps its classifier, and no label of a pool is one
        pool = replace(pool, class_names=data.class_names, num_real=0)
        trainer.go_on_from(_pretrained(config, pool, seed, device, world, saved, checkpoints))
    elif saved is not None:
        trainer.load_state(saved)
    val = data.val.to(device) if trainer.stream.placement.is_resident else data.val
    how, last = "completed", until or config.train.epochs
    while trainer.epoch < last:
        trainer.timed_epoch(val)
        if not report(trainer.report()) and trainer.epoch < last:
            how = "stopped"
            break
        checkpoints.after_epoch(trainer.epoch, last, trainer.state_bytes)
    test = confusion(trainer.result, data.test.to(device)) if with_test and data.test is not None else None
    exported = students.export(trainer.result, data.class_names) if keep_model and world.rank == 0 else {}
    return trainer.outcome(how, test, exported)


def _pretrained(
    config: TrialConfig,
    pool: TrialData,
    seed: int,
    device: torch.device,
    world: World,
    saved: Mapping[str, Any] | None,
    checkpoints: Checkpoints,
) -> Trainer:
    """The first of two trainings, brought to its end; without reports, since there is nothing to validate on."""
    first = config.pretraining
    assert first is not None
    trainer = Trainer(first, pool, seed=seed, device=device, world=world, is_first=True)
    if saved is not None:
        trainer.load_state(saved)
    while trainer.epoch < first.train.epochs:
        trainer.timed_epoch()
        checkpoints.after_epoch(trainer.epoch, first.train.epochs, trainer.state_bytes)
    return trainer
