"""The weight average against its recursion, and in the loop: it is what is evaluated, kept, restored and exported."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as load_tensors
from samples import ALL_TERMS, MemorySlot, always, trial_config, trial_data

from sweeper import student as students
from sweeper.averaging import WeightAverage
from sweeper.checkpoints import state_of
from sweeper.evaluate import accuracy
from sweeper.train import Trainer, World, fit
from sweeper.trial import StudentConfig, TrialConfig

CPU = torch.device("cpu")
DATA = trial_data(taught=True)


def small() -> students.Student:
    return students.build(StudentConfig(model="test_efficientnet"), 4, 32, seed=0)


def averaged(**train: object) -> TrialConfig:
    return trial_config(loss=ALL_TERMS, **{"epochs": 3, "ema": 0.9, "schedule": "wsd", **train})


def trainer_of(config: TrialConfig) -> Trainer:
    return Trainer(config, DATA, seed=1, device=CPU, world=World())


class TestRecursion:
    @pytest.mark.parametrize("decay", [0.3, 0.999])
    def test_every_float_follows_it_and_counters_are_copied(self, decay: float) -> None:
        student = small()
        average = WeightAverage(student, decay)
        expected: dict[str, torch.Tensor] = {}
        for count in range(15):
            with torch.no_grad():
                for value in [*student.parameters(), *student.buffers()]:
                    if value.is_floating_point():
                        value.add_(torch.randn_like(value))
                    else:
                        value.add_(count)
            average.update(student)
            now = min(decay, (1 + count) / (10 + count)) if count else 0.0
            for name, value in student.state_dict().items():
                before = expected.get(name, value.double())
                expected[name] = now * before + (1 - now) * value.double() if value.is_floating_point() else value
        for name, value in average.student.state_dict().items():
            torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-4, atol=1e-5)

    def test_its_state_goes_on(self) -> None:
        student, other = small(), small()
        first, second = WeightAverage(student, 0.99), WeightAverage(other, 0.99)
        first.update(student)
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        buffer.seek(0)
        second.load_state_dict(torch.load(buffer, weights_only=True))
        with torch.no_grad():
            for value in student.parameters():
                value.mul_(2)
        for average in (first, second):
            average.update(student)
        one, two = first.student.state_dict(), second.student.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert int(second.num_updates) == 2


class TestInTheLoop:
    def test_the_average_is_evaluated_and_exported(self) -> None:
        trainer = trainer_of(averaged())
        outcome = fit(averaged(), DATA, seed=1, device=CPU, report=always, slot=MemorySlot())
        for _ in range(3):
            trainer.run_epoch()
        assert trainer.average is not None
        assert trainer.result is trainer.average.student
        assert outcome.accuracy_val == accuracy(trainer.average.student, DATA.val)
        exported = load_tensors(outcome.model["model.safetensors"])
        kept, last = (s.model.state_dict() for s in (trainer.average.student, trainer.student))
        assert all(torch.equal(exported[name], kept[name]) for name in kept)
        assert not all(torch.equal(exported[name], last[name]) for name in last)

    def test_it_leaves_the_training_itself_as_it_was(self) -> None:
        with_it, without = trainer_of(averaged()), trainer_of(averaged(ema=0.0))
        for trainer in (with_it, without):
            trainer.run_epoch()
        one, two = with_it.student.state_dict(), without.student.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert without.result is without.student

    @pytest.mark.parametrize("kind", ["align_uniform", "simkd"])
    def test_a_restart_leaves_no_trace(self, kind: str) -> None:
        config = trial_config(epochs=3, ema=0.9, loss={"ce": 1.0, "embedding": {"kind": kind}})
        undisturbed, first = trainer_of(config), trainer_of(config)
        for _ in range(3):
            undisturbed.run_epoch()
        first.run_epoch()
        resumed = trainer_of(config)
        resumed.load_state(state_of(first.state_bytes(), CPU))
        for _ in range(2):
            resumed.run_epoch()
        one, two = undisturbed.result.state_dict(), resumed.result.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_classifier_that_a_loss_trains_comes_into_the_average(self) -> None:
        trainer = trainer_of(trial_config(epochs=1, ema=0.9, loss={"ce": 1.0, "embedding": {"kind": "simkd"}}))
        trainer.run_epoch()
        heads = [s.model.get_classifier() for s in (trainer.student, trainer.result)]
        assert torch.equal(heads[0].weight, heads[1].weight)
        fresh = students.build(StudentConfig(model="test_efficientnet"), heads[0].out_features, 32, seed=1)
        assert not torch.equal(heads[1].weight, fresh.model.get_classifier().weight)


class TestUntil:
    def test_a_training_that_ends_sooner_is_the_beginning_of_the_whole_one(self) -> None:
        """The model of epoch 2 of 3 can be had again: same schedule, same batches, complete after 2."""
        reports = []
        whole = fit(averaged(), DATA, seed=1, device=CPU, report=always, slot=MemorySlot())
        part = fit(
            averaged(),
            DATA,
            seed=1,
            device=CPU,
            report=lambda done: reports.append(done) is None,
            slot=MemorySlot(),
            until=2,
        )
        assert (part.state, part.epochs) == ("completed", 2)
        assert [row[:3] for row in part.curve] == [row[:3] for row in whole.curve[:2]]
        assert [done.epochs for done in reports] == [3, 3]
        shorter = fit(averaged(epochs=2), DATA, seed=1, device=CPU, report=always, slot=MemorySlot())
        assert replace(shorter, train_seconds=0) != replace(part, train_seconds=0), "its cooldown came sooner"
