"""The loop: repeatable to the bit, also over a restart; honest about what can not be trained; and it learns."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from samples import ALL_TERMS, SIZE, MemorySlot, always, trial_config, trial_data
from torch.nn.functional import avg_pool2d

from sweeper import checkpoints, train
from sweeper.batches import TrialData
from sweeper.checkpoints import state_of
from sweeper.outcome import EpochReport, Outcome, TrialFailed
from sweeper.train import Trainer, World, fit
from sweeper.trial import SyntheticUse, TrialConfig

CPU = torch.device("cpu")
DROPOUT = {"drop_rate": 0.3}
TAUGHT = trial_data(taught=True)
UNTAUGHT = trial_data()


def run(
    config: TrialConfig,
    data: TrialData,
    report: Callable[[EpochReport], bool] = always,
    slot: MemorySlot | None = None,
    **options: Any,
) -> Outcome:
    return fit(config, data, seed=1, device=CPU, report=report, slot=slot or MemorySlot(), **options)


def trainer_of(config: TrialConfig, data: TrialData) -> Trainer:
    return Trainer(config, data, seed=1, device=CPU, world=World())


def same(one: Outcome, other: Outcome) -> bool:
    """Equal to the last bit, apart from the time that it took."""
    return replace(one, train_seconds=0) == replace(other, train_seconds=0)


class TestRepeatable:
    @pytest.mark.parametrize(
        ("config", "data"),
        [(trial_config(epochs=2, model_args=DROPOUT), UNTAUGHT), (trial_config(epochs=2, loss=ALL_TERMS), TAUGHT)],
        ids=["dropout", "taught"],
    )
    def test_other_trials_before_it_do_not_matter(self, config: TrialConfig, data: TrialData) -> None:
        reports: list[list[EpochReport]] = [[], []]

        def into(number: int) -> Callable[[EpochReport], bool]:
            return lambda done: reports[number].append(replace(done, train_seconds=0)) is None

        first = run(config, data, into(0), with_test=True)
        torch.rand(100)
        run(trial_config(epochs=1, batch_size=4, loss={"ce": 0.5, "kl": {"weight": 2.0}}, model_args=DROPOUT), TAUGHT)
        again = run(config, data, into(1), with_test=True)
        assert same(first, again)
        assert reports[0] == reports[1]
        assert len(reports[0]) == 2
        assert first.model.keys() == {"config.json", "model.safetensors"}

    def test_the_seed_matters(self) -> None:
        config = trial_config(epochs=1)
        other = fit(config, UNTAUGHT, seed=2, device=CPU, report=always, slot=MemorySlot())
        assert not same(run(config, UNTAUGHT), other)

    @pytest.mark.parametrize("stop", [1, 2, 3])
    @pytest.mark.parametrize(
        ("config", "data"),
        [
            (trial_config(epochs=4, epoch_size=12, model_args=DROPOUT, loss=ALL_TERMS), TAUGHT),
            (trial_config(epochs=4, epoch_size=12, model_args=DROPOUT), UNTAUGHT),
        ],
        ids=["taught", "untaught"],
    )
    def test_a_restart_leaves_no_trace(self, stop: int, config: TrialConfig, data: TrialData) -> None:
        undisturbed = run(config, data, with_test=True)
        dying = trainer_of(config, data)
        for _ in range(stop):
            dying.run_epoch()
            dying.last_accuracy = train.accuracy(dying.student, data.val)
        dying.seconds = 1000.0
        state = dying.state_bytes()
        torch.manual_seed(99)  # another process: nothing of the first one's generators is left
        reports: list[int] = []
        resumed = run(
            config,
            data,
            lambda done: reports.append(done.epoch) is None,
            MemorySlot(state),
            with_test=True,
        )
        assert same(resumed, undisturbed)
        assert reports == list(range(stop + 1, 5))
        assert resumed.train_seconds > 1000, "time before the restart was paid for too"

    def test_the_curve_holds_the_epochs_before_the_restart_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 0.0)
        monkeypatch.setattr(checkpoints, "CHECKPOINT_SHARE", math.inf)
        config = trial_config(epochs=4, epoch_size=12)
        states: list[bytes] = []

        class Keeping(MemorySlot):
            def save(self, state: bytes) -> None:
                states.append(state)

        undisturbed = run(config, UNTAUGHT, slot=Keeping())
        assert [row[0] for row in undisturbed.curve] == [1, 2, 3, 4]
        for state in states:
            resumed = run(config, UNTAUGHT, slot=MemorySlot(state))
            assert [row[:3] for row in resumed.curve] == [row[:3] for row in undisturbed.curve]
            seconds = [row[3] for row in resumed.curve]
            assert seconds == sorted(seconds)
            assert seconds[-1] == resumed.train_seconds

    def test_what_dropout_draws_belongs_to_the_state(self) -> None:
        """Without the generator's state the test above could pass by luck; here it must make a difference."""
        trainer = trainer_of(trial_config(epochs=2, model_args=DROPOUT), UNTAUGHT)
        trainer.run_epoch()
        saved = trainer.state_bytes()
        losses = []
        for spoil in (False, False, True):
            other = trainer_of(trial_config(epochs=2, model_args=DROPOUT), UNTAUGHT)
            other.load_state(state_of(saved, CPU))
            if spoil:
                torch.manual_seed(99)
            other.run_epoch()
            losses.append(other.last_loss)
        assert losses[0] == losses[1] != losses[2]

    def test_a_finished_checkpoint_is_only_evaluated(self) -> None:
        config = trial_config(epochs=2)
        finished = trainer_of(config, UNTAUGHT)
        for _ in range(2):
            finished.run_epoch()
            finished.last_accuracy = train.accuracy(finished.student, UNTAUGHT.val)
        reports: list[EpochReport] = []
        outcome = run(
            config, UNTAUGHT, lambda r: reports.append(r) is None, MemorySlot(finished.state_bytes()), with_test=True
        )
        assert reports == []
        assert same(outcome, run(config, UNTAUGHT, with_test=True))

    def test_checkpoints_come_as_often_as_they_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 0.0)
        monkeypatch.setattr(checkpoints, "CHECKPOINT_SHARE", math.inf)
        epochs: list[int] = []

        class Watching(MemorySlot):
            def save(self, state: bytes) -> None:
                epochs.append(trainer_state(state)["epoch"])

        def trainer_state(state: bytes) -> dict[str, Any]:
            trainer = trainer_of(config, UNTAUGHT)
            trainer.load_state(state_of(state, CPU))
            return {"epoch": trainer.epoch}

        config = trial_config(epochs=3, epoch_size=6)
        run(config, UNTAUGHT, slot=Watching())
        assert epochs == [1, 2], "none after the last epoch, whose outcome is about to be told"
        monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 1e6)
        run(config, UNTAUGHT, slot=Watching())
        assert epochs == [1, 2]

    def test_a_process_that_will_be_taken_away_saves_at_once(self) -> None:
        """Every rank asks, after each epoch but the last; the first one saves."""
        saved: list[bytes] = []
        asked: list[int] = []

        class Leaving(MemorySlot):
            def __init__(self, rank: int) -> None:
                super().__init__()
                self.rank = rank

            def save(self, state: bytes) -> None:
                saved.append(state)

            def is_urgent(self) -> bool:
                asked.append(self.rank)
                return len(asked) % 4 == 2

        config = trial_config(epochs=5, epoch_size=6)
        run(config, UNTAUGHT, slot=Leaving(0))
        assert (asked, len(saved)) == ([0] * 4, 1)
        found = state_of(saved[0], CPU)
        assert found is not None
        assert found["epoch"] == 2
        run(config, UNTAUGHT, slot=Leaving(1), world=World(rank=1))
        assert (asked[4:], len(saved)) == ([1] * 4, 1)


class TestEnds:
    def test_every_epoch_is_reported(self) -> None:
        reports: list[EpochReport] = []
        outcome = run(trial_config(epochs=3), UNTAUGHT, lambda done: reports.append(done) is None)
        assert [(done.epoch, done.epochs) for done in reports] == [(1, 3), (2, 3), (3, 3)]
        seconds = [done.train_seconds for done in reports]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
        assert (outcome.state, outcome.epochs, outcome.accuracy_test) == ("completed", 3, None)
        assert (outcome.accuracy_val, outcome.train_seconds) == (reports[-1].accuracy_val, seconds[-1])

    def test_seconds_count_every_rank(self) -> None:
        """Two ranks hold two devices; here the second rank's share is simply not trained."""
        reports: list[float] = []
        trainer = Trainer(trial_config(epochs=1), UNTAUGHT, seed=1, device=CPU, world=World(0, 2))
        assert [len(b.index_B) for b in trainer.stream.batches(0, 18)] == [3, 3, 3]
        ticking = itertools.count(10.0, 2.5)  # each look at the clock is 2.5 s after the last one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.time, "perf_counter", lambda: next(ticking))
            patch.setattr(Trainer, "synchronised", lambda self: next(ticking))
            outcome = run(
                trial_config(epochs=1), UNTAUGHT, lambda r: reports.append(r.train_seconds) is None, world=World(0, 2)
            )
        assert reports == [2 * (2.5 + 2.5)], "making the model and one epoch, on two devices"
        assert outcome.train_seconds == reports[0]

    @pytest.mark.parametrize(("stop_at", "state"), [(1, "stopped"), (2, "stopped"), (3, "completed")])
    def test_a_report_can_ask_for_the_end(self, stop_at: int, state: str) -> None:
        outcome = run(trial_config(epochs=3), UNTAUGHT, lambda done: done.epoch < stop_at)
        assert (outcome.state, outcome.epochs) == (state, stop_at)

    def test_only_what_was_asked_for_is_exported(self) -> None:
        outcome = run(trial_config(epochs=1), UNTAUGHT, keep_model=False)
        assert outcome.model == {}
        assert outcome.params > 0
        outcome = run(trial_config(epochs=1), UNTAUGHT, world=World(1, 2))
        assert outcome.model == {}, "rank 0 exports"

    @pytest.mark.parametrize("way", ["loss", "learning rate"])
    def test_a_loss_that_is_not_finite_fails_the_trial(self, way: str) -> None:
        data, config = UNTAUGHT, trial_config(epochs=5, lr=1e9, warmup=0.0)
        if way == "loss":
            source: Any = TAUGHT.source
            logits = torch.full_like(source.columns["logits"], math.nan)
            data = replace(TAUGHT, source=replace(source, columns={"logits": logits}))
            config = trial_config(epochs=5, loss={"ce": 1.0, "kl": {"weight": 1.0}})
        reports: list[int] = []
        with pytest.raises(TrialFailed, match=r"the loss became (nan|inf) in epoch \d of 5") as raised:
            run(config, data, lambda done: reports.append(done.epoch) is None)
        assert f"epoch {len(reports) + 1} of" in str(raised.value)
        if way == "loss":
            assert reports == []

    def test_it_learns(self) -> None:
        data = trial_data(48)
        outcome = run(trial_config(epochs=12, batch_size=16, lr=5e-3), data, with_test=True)
        assert outcome.accuracy_test is not None
        assert min(outcome.accuracy_val, outcome.accuracy_test) > 0.8

    def test_it_learns_from_the_teacher_alone(self) -> None:
        """The labels are unusable: what is learned came through the targets."""
        data = trial_data(48, taught=True, num_real=0)
        config = trial_config(epochs=12, batch_size=16, lr=5e-3, loss=ALL_TERMS)
        config = config.model_copy(update={"synthetic": SyntheticUse(source="s", ratio=1, labels="none")})
        outcome = run(config, data)
        assert outcome.accuracy_val > 0.8

    def test_the_last_learning_rates_do_little(self) -> None:
        """The cosine ends near zero: the last step of many moves the weights less than the first ones."""
        config = trial_config(epochs=6, epoch_size=6, lr=1e-2, weight_decay=0.0, warmup=0.0)
        trainer = trainer_of(config, UNTAUGHT)
        moved = []
        for _ in range(6):
            before = torch.cat([p.detach().flatten().clone() for p in trainer.student.parameters()])
            trainer.run_epoch()
            after = torch.cat([p.detach().flatten() for p in trainer.student.parameters()])
            moved.append(float((after - before).abs().max()))
        assert moved[0] == pytest.approx(1e-2, rel=1e-3), "Adam's first step has the size of the learning rate"
        assert moved[-1] < 0.2 * moved[0]


class TestCheckpoint:
    def test_projectors_are_trained_and_saved_with_the_student(self) -> None:
        config = trial_config(epochs=2, loss=ALL_TERMS)
        trainer = trainer_of(config, TAUGHT)
        own = {n: p for n, p in trainer.objective.named_parameters() if not n.startswith("student.")}
        assert own, "the student is wider than the teacher: there is a projector"
        before = {name: value.detach().clone() for name, value in own.items()}
        trainer.run_epoch()
        assert all(not torch.equal(before[name], value) for name, value in own.items())
        other = trainer_of(config, TAUGHT)
        other.load_state(state_of(trainer.state_bytes(), CPU))
        for name, value in trainer.objective.state_dict().items():
            assert torch.equal(other.objective.state_dict()[name], value)
        exported = load_tensors(run(config, TAUGHT).model["model.safetensors"])
        assert exported.keys() == trainer.student.model.state_dict().keys()


class TestSteps:
    def test_an_epoch_is_a_pass_or_what_was_asked_for(self) -> None:
        assert trainer_of(trial_config(batch_size=4), UNTAUGHT).steps_per_epoch == round(18 / 4)
        assert trainer_of(trial_config(batch_size=4, epoch_size=40), UNTAUGHT).steps_per_epoch == 10
        assert trainer_of(trial_config(batch_size=64), UNTAUGHT).steps_per_epoch == 1

    def test_bf16_trains(self) -> None:
        outcome = run(trial_config(epochs=1, precision="bf16", loss=ALL_TERMS), TAUGHT)
        assert 0 <= outcome.accuracy_val <= 1
        assert not same(outcome, run(trial_config(epochs=1, loss=ALL_TERMS), TAUGHT))


class TestResolution:
    def test_a_student_may_see_less_than_the_dataset_holds(self) -> None:
        whole = trial_config(epochs=1, loss=ALL_TERMS)
        config = whole.model_copy(update={"student": whole.student.model_copy(update={"image_size": SIZE // 2})})
        small, large = trainer_of(config, TAUGHT), trainer_of(whole, TAUGHT)
        seen, other = small.stream.batch(0), large.stream.batch(0)
        assert seen.images_BCHW.shape[-2:] == (SIZE // 2, SIZE // 2)
        assert torch.allclose(seen.images_BCHW, avg_pool2d(other.images_BCHW, 2), atol=0.1), "of the same views"
        assert torch.equal(seen.teacher.logits_BK, other.teacher.logits_BK), "the teacher keeps its own"
        outcome = run(config, TAUGHT, with_test=True)
        assert json.loads(outcome.model["config.json"])["pretrained_cfg"]["input_size"] == [3, SIZE // 2, SIZE // 2]
        assert outcome.accuracy_test is not None

    def test_what_it_is_not_asked_for_is_in_no_key(self) -> None:
        assert "image_size" not in trial_config().student.model_dump()


class TestMemoryFormat:
    @pytest.mark.parametrize(("precision", "is_last"), [("fp32", True), ("bf16", False)])
    def test_on_a_cpu_convolutions_are_channels_last_in_fp32_alone(self, precision: str, is_last: bool) -> None:
        trainer = Trainer(trial_config(epochs=1, precision=precision), TAUGHT, seed=0, device=CPU, world=World())
        wide = [p for p in trainer.student.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert wide
        assert all(p.is_contiguous(memory_format=torch.channels_last) == is_last for p in wide)


class TestOptimizer:
    def test_one_pass_over_all_parameters_is_adamw(self) -> None:
        """Depthwise and pointwise convolutions in channels last too, whose order in memory that pass relies on."""
        ours, plain = (trainer_of(trial_config(loss=ALL_TERMS), TAUGHT) for _ in range(2))
        reference = torch.optim.AdamW(plain.objective.parameters(), lr=3e-3, betas=(0.9, 0.999), weight_decay=0.01)
        recipe = ours.config.train.model_copy(update={"lr": 3e-3, "weight_decay": 0.01})
        fused = train.optimizer(ours.objective.parameters(), recipe)
        ours.gradient.of(0, 0.0)
        for step in range(5):
            torch.manual_seed(step)
            for mine, other in zip(ours.objective.parameters(), plain.objective.parameters(), strict=True):
                assert mine.grad is None or mine.grad.stride() == mine.stride()
                if step:
                    mine.grad = torch.randn_like(mine)
                other.grad = None if mine.grad is None else mine.grad.clone()
            fused.step()
            reference.step()
        for mine, other in zip(ours.objective.parameters(), plain.objective.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
