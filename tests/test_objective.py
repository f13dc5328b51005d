"""What a student is trained on: each term by hand, synthetic images treated apart, and every loss in the loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import ALL_TERMS, CLASS_NAMES, VIEWS, WIDTH, MemorySlot, always, made_up_targets, trial_config, trial_data
from torch import Tensor, nn
from torch.nn import functional as F

from sweeper import registry, sources
from sweeper import student as students
from sweeper.batches import TrialData
from sweeper.checkpoints import state_of
from sweeper.feeding import Batch, BatchStream
from sweeper.losses import ONLINE, LossInputs
from sweeper.losses._module import NORMALIZING_BATCHES
from sweeper.objective import Objective
from sweeper.sources import LiveTeacher
from sweeper.teachers import timm as timm_teacher
from sweeper.train import Trainer, World, fit
from sweeper.trial import StudentConfig, TrialConfig

CPU = torch.device("cpu")
NUM, NUM_REAL = 12, 7
KINDS = tuple(registry.kinds("losses"))
CACHED = tuple(kind for kind in KINDS if not registry.load("losses", kind).NEEDS & ONLINE)
RUNNING = tuple(kind for kind in KINDS if kind not in CACHED)
RAW_COSINE = {"kind": "cosine", "normalize": False}
RAW_UNIFORM = {"kind": "align_uniform", "normalize": False}


def config_of(loss: Mapping[str, Any], synthetic: Mapping[str, Any] | None = None, **train: Any) -> TrialConfig:
    """With a teacher, and with synthetic images where `synthetic` says how they are used."""
    tree = trial_config(loss=loss, **{"epochs": 1, **train}).model_dump()
    tree["synthetic"] = {"source": "s", "ratio": 1.0, **synthetic} if synthetic is not None else {}
    return TrialConfig.model_validate(tree).resolved()


def mixed_data(num_real: int = NUM_REAL, **changes: Any) -> TrialData:
    """Real images first; a teacher who is often at odds with the labels."""
    data = trial_data(NUM, taught=True, num_real=num_real, **changes)
    source: Any = data.source
    logits = 3 * torch.randn(source.columns["logits"].shape, generator=torch.Generator().manual_seed(5))
    return replace(data, source=replace(source, columns={**source.columns, "logits": logits.half()}))


def objective_of(config: TrialConfig, data: TrialData) -> Objective:
    torch.manual_seed(0)
    student = students.build(config.student, len(CLASS_NAMES), data.image_size, seed=0)
    return Objective(student, config, data)


def whole_batch(data: TrialData) -> Any:
    """Every training image once, the real ones first."""
    return BatchStream(data, batch_size=len(data.train), seed=3, device=CPU).batch(0)


def inputs_of(objective: Objective, batch: Batch, rows: slice = slice(None), **changes: Any) -> LossInputs:
    """What a loss should see of some rows of a batch: the student sees the whole batch, as its BatchNorm does."""
    out = objective.student(batch.images_BCHW, pre=True)
    teacher: Any = batch.teacher
    return LossInputs(
        **{
            "student_logits_BK": out.logits_BK[rows],
            "student_embedding_BD": out.embedding_BD[rows],
            "student_pre_embedding_BD": out.pre_embedding_BD[rows],
            "teacher_logits_BK": teacher.logits_BK[rows],
            "teacher_embedding_BT": teacher.embedding_BT[rows],
            "labels_B": batch.labels_B[rows],
            "index_B": batch.index_B[rows],
            "hard_B": torch.ones_like(batch.labels_B[rows], dtype=torch.bool),
            **changes,
        }
    )


def only(name: str, **settings: Any) -> dict[str, Any]:
    """A loss section with one term, raw."""
    loss: dict[str, Any] = {"ce": 0.0}
    if name == "ce":
        return {"ce": 1.0, "kl": {"weight": 0.0}, "embedding": {"kind": "cosine", "weight": 1e-30, "normalize": False}}
    if name == "kl":
        return {**loss, "kl": {"weight": 1.0, "temperature": 2.0, "normalize": False, **settings}}
    return {**loss, "embedding": {"normalize": False, **settings}}


def value(loss: Tensor) -> float:
    return float(loss.detach())


def log_softmax(logits: Any) -> np.ndarray:
    values = np.asarray(logits.detach(), dtype=np.float64)
    values = values - values.max(axis=1, keepdims=True)
    found: np.ndarray = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


class TestCrossEntropy:
    @pytest.mark.parametrize("weight", [1.0, 2.5])
    @pytest.mark.parametrize("labels", ["hard", "teacher", "none"])
    def test_by_hand(self, labels: str, weight: float) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("ce"), {"labels": labels, "weight": weight}), data)
        batch = whole_batch(data)
        log_p = log_softmax(objective.student(batch.images_BCHW).logits_BK)
        # the source also holds logits where the trial does not ask for them; only `teacher` may look
        told = batch.teacher.logits_BK.argmax(dim=1)
        assert (told[NUM_REAL:] != batch.labels_B[NUM_REAL:]).any()
        assert (told[:NUM_REAL] != batch.labels_B[:NUM_REAL]).any(), "real images keep their own label"
        total = weights = 0.0
        for i in range(NUM):
            label, count = int(batch.labels_B[i]), 1.0
            if i >= NUM_REAL:
                label = int(told[i]) if labels == "teacher" else label
                count = 0.0 if labels == "none" else weight
            total -= count * log_p[i, label]
            weights += count
        assert value(objective(batch)) == pytest.approx(total / weights, rel=1e-5)

    def test_no_label_counts(self) -> None:
        data = mixed_data(num_real=0)
        objective = objective_of(config_of(only("ce"), {"labels": "none"}), data)
        loss = objective(whole_batch(data))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-20)
        grads = [p.grad for p in objective.student.parameters() if p.grad is not None]
        assert all(float(grad.abs().max()) < 1e-20 for grad in grads)

    def test_without_a_teacher_it_is_all_there_is(self) -> None:
        data = trial_data(NUM)
        objective = objective_of(trial_config(), data)
        batch = whole_batch(data)
        assert not list(objective.terms)
        expected = F.cross_entropy(objective.student(batch.images_BCHW).logits_BK, batch.labels_B)
        torch.testing.assert_close(objective(batch), expected)


class TestLabelsForLosses:
    @pytest.mark.parametrize("labels", ["hard", "teacher", "none"])
    def test_a_loss_sees_the_same_labels_and_which_may_be_used(
        self, labels: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", kind="cosine"), {"labels": labels}), data)
        batch = whole_batch(data)
        seen: list[LossInputs] = []
        embedding: Any = objective.terms["embedding"]
        monkeypatch.setattr(embedding[0], "forward", lambda inputs: seen.append(inputs) or torch.zeros(()))
        objective(batch, progress=0.25)
        told = batch.teacher.logits_BK.argmax(dim=1)[NUM_REAL:]
        expected = torch.cat([batch.labels_B[:NUM_REAL], told]) if labels == "teacher" else batch.labels_B
        assert torch.equal(seen[0].labels_B, expected)
        assert seen[0].hard_B.tolist() == [i < NUM_REAL or labels != "none" for i in range(NUM)]
        assert torch.equal(seen[0].index_B, batch.index_B)
        assert seen[0].progress == 0.25

    @pytest.mark.parametrize("labels", ["hard", "none"])
    def test_the_pool_says_the_same_of_all_images(self, labels: str) -> None:
        """CRD sorts the pool by class: synthetic images without a label come last."""
        data = mixed_data()
        settings = {"kind": "crd", "negatives": 4, "dim": 4}
        objective = objective_of(config_of(only("embedding", **settings), {"labels": labels}), data)
        term: Any = objective.terms["embedding"]
        counted = data.train.labels_B[: NUM_REAL if labels == "none" else NUM]
        assert term[0].count_K.tolist() == counted.bincount(minlength=3).tolist()


class TestSyntheticImages:
    def test_treated_alike_the_batch_is_one(self) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {}), data)
        batch = whole_batch(data)
        term: Any = objective.terms["embedding"]
        expected = term[0](inputs_of(objective, batch))
        torch.testing.assert_close(objective(batch), expected)
        parts = [term[0](inputs_of(objective, batch, rows)) for rows in (slice(NUM_REAL), slice(NUM_REAL, None))]
        apart = (NUM_REAL * parts[0] + (NUM - NUM_REAL) * parts[1]) / NUM
        assert abs(value(apart - expected)) > 1e-3, "uniformity is over pairs of the whole batch"

    @pytest.mark.parametrize("weight", [1.0, 0.5, 3.0])
    def test_align_only(self, weight: float) -> None:
        data = mixed_data()
        use = {"embedding": "align_only", "weight": weight}
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), use), data)
        batch = whole_batch(data)
        terms: Any = objective.terms
        real = terms["embedding"][0](inputs_of(objective, batch, slice(NUM_REAL)))
        made = terms["align"][0](inputs_of(objective, batch, slice(NUM_REAL, None)))
        count = weight * (NUM - NUM_REAL)
        torch.testing.assert_close(objective(batch), (NUM_REAL * real + count * made) / (NUM_REAL + count))

    def test_align_is_an_alignment_of_its_own(self) -> None:
        """Its term is 0 where the projected student equals the teacher, and nothing pushes images apart."""
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {"embedding": "align_only"}), data)
        batch = whole_batch(data)
        terms: Any = objective.terms
        made = inputs_of(objective, batch, slice(NUM_REAL, None))
        one_by_one = [
            terms["align"][0](inputs_of(objective, batch, slice(i, i + 2))) for i in range(NUM_REAL, NUM - 1, 2)
        ]
        first = inputs_of(objective, batch, slice(NUM_REAL, NUM_REAL + 4))
        torch.testing.assert_close(terms["align"][0](first), torch.stack(one_by_one[:2]).mean())
        assert value(terms["align"][0](made)) > 0

    def test_none_leaves_them_out(self) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {"embedding": "none"}), data).eval()
        batch = whole_batch(data)
        images = batch.images_BCHW.requires_grad_()
        term: Any = objective.terms["embedding"]
        loss = objective(batch)
        torch.testing.assert_close(loss, term[0](inputs_of(objective, batch, slice(NUM_REAL))))
        (slope_BCHW,) = torch.autograd.grad(loss, images)
        assert (slope_BCHW[:NUM_REAL].flatten(1).abs().amax(dim=1) > 0).all()
        assert (slope_BCHW[NUM_REAL:] == 0).all()

    def test_same_and_align_only_do_reach_them(self) -> None:
        """The gradient that the test above finds missing is there otherwise."""
        data = mixed_data()
        for use in ("same", "align_only"):
            objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {"embedding": use}), data).eval()
            batch = whole_batch(data)
            images = batch.images_BCHW.requires_grad_()
            (slope_BCHW,) = torch.autograd.grad(objective(batch), images)
            assert (slope_BCHW[NUM_REAL:].flatten(1).abs().amax(dim=1) > 0).all()

    def test_none_without_real_images_is_0(self) -> None:
        data = mixed_data(num_real=0)
        loss = {"ce": 1.0, "embedding": RAW_UNIFORM}
        objective = objective_of(config_of(loss, {"embedding": "none"}), data)
        batch = whole_batch(data)
        expected = F.cross_entropy(objective.student(batch.images_BCHW).logits_BK, batch.labels_B)
        torch.testing.assert_close(objective(batch), expected)

    @pytest.mark.parametrize("weight", [1.0, 0.25, 4.0])
    def test_kl_counts_each_image_by_its_weight(self, weight: float) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("kl"), {"weight": weight}), data)
        batch = whole_batch(data)
        student = log_softmax(objective.student(batch.images_BCHW).logits_BK / 2)
        teacher = log_softmax(batch.teacher.logits_BK / 2)
        kl_B = 4 * (np.exp(teacher) * (teacher - student)).sum(axis=1)
        counts_B = np.where(np.arange(NUM) < NUM_REAL, 1.0, weight)
        assert value(objective(batch)) == pytest.approx((kl_B * counts_B).sum() / counts_B.sum(), rel=1e-5)

    @pytest.mark.parametrize("use", [{"weight": 2.0}, {"embedding": "align_only"}])
    @pytest.mark.parametrize("num_real", [0, 1, NUM - 1, NUM])
    def test_a_part_with_one_row_is_left_out(self, num_real: int, use: Mapping[str, Any]) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), use), data).eval()
        batch = replace(whole_batch(data), num_real=num_real)
        images = batch.images_BCHW.requires_grad_()
        loss = objective(batch)
        terms: Any = objective.terms
        weight, num_made = use.get("weight", 1.0), NUM - num_real
        expected: Any = torch.zeros(())
        if num_real > 1:
            expected = expected + num_real * terms["embedding"][0](inputs_of(objective, batch, slice(num_real)))
        if num_made > 1:
            other = terms["align" if "embedding" in use else "embedding"][0]
            expected = expected + weight * num_made * other(inputs_of(objective, batch, slice(num_real, None)))
        torch.testing.assert_close(loss, expected / (num_real + weight * num_made))
        (slope_BCHW,) = torch.autograd.grad(loss, images)
        assert slope_BCHW.isfinite().all()
        reached = (slope_BCHW.flatten(1).abs().amax(dim=1) > 0).tolist()
        left_out = [i for i in range(NUM) if (num_real == 1 and i == 0) or (num_made == 1 and i == NUM - 1)]
        assert [i for i in range(NUM) if not reached[i]] == left_out

    def test_a_batch_of_two_single_rows_is_0(self) -> None:
        data = mixed_data()
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {"weight": 2.0}), data).eval()
        batch = whole_batch(data)
        teacher = replace(
            batch.teacher,
            **{name: getattr(batch.teacher, name)[:2] for name in ("logits_BK", "embedding_BT", "pre_embedding_BT")},
        )
        two = Batch(batch.images_BCHW[:2], batch.labels_B[:2], batch.index_B[:2], 1, teacher)
        assert value(objective(two)) == 0


class TestSum:
    def test_terms_are_weighted_and_added(self) -> None:
        loss = {
            "ce": 0.3,
            "kl": {"weight": 0.7, "temperature": 3.0, "normalize": False},
            "embedding": {**RAW_COSINE, "weight": 5.0},
        }
        data = mixed_data()
        objective = objective_of(config_of(loss), data)
        batch = whole_batch(data)
        out = objective.student(batch.images_BCHW)
        terms: Any = objective.terms
        projected = terms["embedding"][0].student_projector(out.embedding_BD)
        cosine = (1 - F.cosine_similarity(projected, batch.teacher.embedding_BT)).mean()
        kl = 9 * F.kl_div(
            (out.logits_BK / 3).log_softmax(1), (batch.teacher.logits_BK / 3).softmax(1), reduction="batchmean"
        )
        expected = 0.3 * F.cross_entropy(out.logits_BK, batch.labels_B) + 0.7 * kl + 5 * cosine
        torch.testing.assert_close(objective(batch), expected)

    def test_a_term_of_weight_0_is_not_there(self) -> None:
        objective = objective_of(config_of({"ce": 1.0, "kl": {"weight": 0.0}, "embedding": RAW_COSINE}), mixed_data())
        assert list(objective.terms) == ["embedding"]
        objective = objective_of(config_of({"ce": 1.0, "kl": {"weight": 1.0}}), mixed_data())
        assert list(objective.terms) == ["kl"]


class TestNormalised:
    @pytest.mark.parametrize("settles", [False, True])
    @pytest.mark.parametrize("name", ["kl", "embedding"])
    def test_the_weight_multiplies_a_loss_of_size_1(self, name: str, settles: bool) -> None:
        data = mixed_data()
        stream = BatchStream(data, batch_size=4, seed=3, device=CPU)
        raw_loss = only("kl") if name == "kl" else only("embedding", kind="cosine")
        raw = objective_of(config_of(raw_loss), data)
        loss = copy.deepcopy(raw_loss)
        loss[name] |= {"normalize": True, "weight": 3.0}
        scaled = objective_of(config_of(loss), data)
        sizes: list[float] = []
        for position in range(0, 4 * (NORMALIZING_BATCHES + 2), 4):
            batch = stream.batch(position)
            found = value(raw(batch))
            sizes.append(found)
            mean = np.mean(sizes[:NORMALIZING_BATCHES])
            assert value(scaled(batch)) == pytest.approx(3 * found / mean, rel=1e-4)
            if settles:
                scaled.settle()
        assert [term.is_fixed for term in scaled.normalized] == [settles]
        assert len(set(sizes)) == len(sizes)
        state = scaled.state_dict()
        prefix = f"terms.{name}" + (".0" if name == "embedding" else "")
        assert float(state[f"{prefix}.size"]) == pytest.approx(np.mean(sizes[:NORMALIZING_BATCHES]), rel=1e-4)
        assert int(state[f"{prefix}.batches"]) == NORMALIZING_BATCHES

    def test_cross_entropy_keeps_its_size(self) -> None:
        data = mixed_data()
        objective = objective_of(config_of({"ce": 2.0, "kl": {"weight": 1.0}}), data)
        batch = whole_batch(data)
        ce = F.cross_entropy(objective.student(batch.images_BCHW).logits_BK, batch.labels_B)
        assert value(objective(batch)) == pytest.approx(2 * value(ce) + 1, rel=1e-5)

    @pytest.mark.parametrize("use", [{"weight": 2.0}, {"embedding": "align_only"}, {"embedding": "none"}])
    def test_every_worker_takes_part_in_every_mean(
        self, use: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shares of a batch differ in how many of their images are synthetic; the collectives must not."""
        calls: list[tuple[int, ...]] = []
        distributed: Any = torch.distributed
        monkeypatch.setattr(distributed, "is_available", lambda: True)
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(distributed, "all_reduce", lambda tensor, *_, **__: calls.append(tuple(tensor.shape)))
        data = mixed_data()
        batch = whole_batch(data)
        found = []
        for num_real in (NUM, NUM - 1, NUM_REAL, 1, 0):
            objective = objective_of(config_of({"ce": 1.0, "embedding": {"kind": "cosine"}}, use), data)
            calls.clear()
            objective(replace(batch, num_real=num_real))
            found.append(list(calls))
        assert found[2], "each batch with both kinds of images is measured"
        assert all(shapes == found[2] for shapes in found)


def test_a_batch_from_which_no_term_learns_has_a_zero_gradient() -> None:
    """All of its images are synthetic, and the only term leaves these out."""
    data = mixed_data()
    config = config_of({"ce": 0.0, "embedding": {"kind": "cosine"}}, {"embedding": "none"})
    objective = objective_of(config, data)
    loss = objective(replace(whole_batch(data), num_real=0))
    loss.backward()
    assert value(loss) == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


def trainer_of(config: TrialConfig, data: TrialData) -> Trainer:
    return Trainer(config, data, seed=1, device=CPU, world=World())


def restart_leaves_no_trace(config: TrialConfig, data: TrialData) -> Trainer:
    """Two epochs in one go and with a restart between them; returns the trainer that was restarted."""
    undisturbed = trainer_of(config, data)
    undisturbed.run_epoch()
    state = undisturbed.state_bytes()
    undisturbed.run_epoch()
    torch.manual_seed(99)  # another process
    resumed = trainer_of(config, data)
    resumed.load_state(state_of(state, CPU))
    resumed.run_epoch()
    one, other = undisturbed.objective.state_dict(), resumed.objective.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert undisturbed.last_loss == resumed.last_loss
    return resumed


class TestRestart:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("kind", ["align_uniform", "crd"])
    def test_projectors_banks_and_divisors_go_on(self, kind: str, precision: str) -> None:
        loss = {**ALL_TERMS, "embedding": {"kind": kind, "weight": 0.5}}
        config = config_of(loss, {"weight": 2.0}, epochs=2, precision=precision)
        resumed = restart_leaves_no_trace(config, mixed_data())
        state = resumed.objective.state_dict()
        own = [name for name in state if name.startswith("terms.")]
        assert {"terms.kl.size", "terms.kl.batches", "terms.embedding.0.size"} <= set(own)
        assert any("projector" in name for name in own)
        assert any("bank" in name for name in own) == (kind == "crd")
        trained = {name for name, parameter in resumed.objective.named_parameters() if parameter.requires_grad}
        # two terms over 12 images in batches of 6, the real and the synthetic ones apart: two or four sizes an epoch
        assert 2 * 2 <= int(state["terms.kl.batches"]) <= 2 * 4
        assert sum(len(group["params"]) for group in resumed.optimizer.param_groups) == len(trained)

    def test_what_a_loss_draws_belongs_to_the_state(self) -> None:
        """CRD draws negatives: without the generator's state the test above would fail."""
        config = config_of({"ce": 1.0, "embedding": {"kind": "crd", "negatives": 2}}, epochs=2)
        first = trainer_of(config, mixed_data())
        first.run_epoch()
        state = first.state_bytes()
        losses = []
        for spoil in (False, True):
            resumed = trainer_of(config, mixed_data())
            resumed.load_state(state_of(state, CPU))
            if spoil:
                torch.manual_seed(99)
            resumed.run_epoch()
            losses.append(resumed.last_loss)
        assert losses[0] != losses[1]


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


class TestEveryKind:
    @pytest.mark.parametrize("kind", CACHED)
    def test_a_cached_loss_trains(self, kind: str) -> None:
        data = trial_data(18, taught=True, num_real=14)
        config = config_of({"ce": 0.0, "embedding": {"kind": kind}}, {"labels": "none"}, batch_size=9)
        assert not config.is_online
        trainer = trainer_of(config, data)
        before = {name: value.detach().clone() for name, value in trainer.objective.named_parameters()}
        trainer.run_epoch()
        after = dict(trainer.objective.named_parameters())
        assert np.isfinite(trainer.last_loss)
        assert all(value.isfinite().all() for value in after.values())
        assert "student.model.conv_stem.weight" in moved(before, after), "the gradient reaches the first layer"
        own = {name for name in before if not name.startswith("student.")}
        assert own <= moved(before, after), "every trained part of the loss is trained"

    @pytest.mark.parametrize("kind", CACHED)
    def test_a_cached_loss_reads_only_the_columns_that_it_names(self, kind: str) -> None:
        data = trial_data(18, taught=True)
        config = config_of({"ce": 0.5, "embedding": {"kind": kind}}, batch_size=9)
        source: Any = data.source
        few = replace(source, columns={n: c for n, c in source.columns.items() if n in config.needs})
        outcome = fit(
            config, replace(data, source=few), seed=1, device=CPU, report=always, slot=MemorySlot(), with_test=True
        )
        assert outcome.state == "completed"

    @pytest.mark.parametrize("kind", RUNNING)
    def test_an_online_loss_trains(self, kind: str, live_data: TrialData) -> None:
        config = config_of({"ce": 0.5, "kl": {"weight": 0.5}, "embedding": {"kind": kind}}, batch_size=9)
        assert config.is_online
        source: Any = live_data.source
        data = replace(live_data, source=replace(source, needs=config.needs, num_maps=4 * ("maps" in config.needs)))
        before_teacher = copy.deepcopy(source.teacher.state_dict())
        trainer = trainer_of(config, data)
        before = {name: value.detach().clone() for name, value in trainer.objective.named_parameters()}
        trainer.run_epoch()
        after = dict(trainer.objective.named_parameters())
        assert np.isfinite(trainer.last_loss)
        assert all(value.isfinite().all() for value in after.values())
        own = {name for name in before if not name.startswith("student.")}
        assert own <= moved(before, after)
        assert not moved(before_teacher, source.teacher.state_dict())
        assert not any(module.training for module in source.teacher.modules())
        assert all(p.grad is None for p in source.teacher.parameters())

    @pytest.mark.parametrize("kind", RUNNING)
    def test_an_online_loss_reaches_the_student(self, kind: str, live_data: TrialData) -> None:
        config = config_of({"ce": 0.0, "embedding": {"kind": kind}}, batch_size=9)
        source: Any = live_data.source
        data = replace(live_data, source=replace(source, needs=config.needs, num_maps=4 * ("maps" in config.needs)))
        trainer = trainer_of(config, data)
        trainer.model.train()
        trainer.model(trainer.stream.batch(0), 0.5).backward()  # some losses begin at weight 0
        slope = dict(trainer.student.named_parameters())["model.conv_stem.weight"].grad
        assert slope is not None
        assert slope.isfinite().all()
        assert float(slope.abs().max()) > 0

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_transformer_has_a_jacobian_too(self, precision: str, live_data: TrialData) -> None:
        """Fused attention has no second derivative."""
        config = config_of({"ce": 0.0, "embedding": {"kind": "jacobian"}}, batch_size=9, precision=precision)
        config = config.model_copy(update={"student": StudentConfig(model="test_vit")})
        source: Any = live_data.source
        trainer = trainer_of(config, replace(live_data, source=replace(source, needs=config.needs)))
        before = {name: value.detach().clone() for name, value in trainer.student.named_parameters()}
        trainer.run_epoch()
        after = dict(trainer.student.named_parameters())
        assert all(value.isfinite().all() for value in after.values())
        assert "model.patch_embed.proj.weight" in moved(before, after)

    @pytest.mark.parametrize(("of_student", "of_teacher"), [(4, 2), (2, 4), (3, 3)])
    def test_maps_are_paired_from_the_deepest(
        self, of_student: int, of_teacher: int, live_data: TrialData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = config_of({"ce": 0.0, "embedding": {"kind": "fitnet", "normalize": False}})
        source: Any = live_data.source
        source = replace(source, needs=config.needs, num_maps=of_teacher)
        student = students.build(config.student, len(CLASS_NAMES), live_data.image_size, seed=0)
        points = student.tap_points
        few = replace(points, maps=points.maps[-of_student:], shapes=points.shapes[-of_student:])
        monkeypatch.setattr(student, "tap_points", few)
        data = replace(live_data, source=source)
        objective = Objective(student, config, data)
        seen: list[LossInputs] = []
        embedding: Any = objective.terms["embedding"]
        monkeypatch.setattr(embedding[0], "forward", lambda inputs: seen.append(inputs) or torch.zeros(()))
        batch = whole_batch(data)
        objective(batch)
        count = min(of_student, of_teacher)
        told: Any = batch.teacher
        assert len(told.maps) == of_teacher
        assert len(seen[0].student_maps) == len(seen[0].teacher_maps) == count
        assert all(found is told.maps[of_teacher - count + i] for i, found in enumerate(seen[0].teacher_maps))
        assert [tuple(m.shape[1:]) for m in seen[0].student_maps] == list(points.shapes[-count:])

    def test_there_are_kinds_of_both_sorts(self) -> None:
        assert {"kl", "align_uniform", "simkd", "kdep", "crd"} <= set(CACHED)
        assert {"jacobian", "fsp", "at"} <= set(RUNNING)


@pytest.fixture(scope="module")
def live_data() -> TrialData:
    """A random teacher at 32 px in the loop; images at 16 px."""
    data = trial_data(18)
    config = timm_teacher.Config(model="test_resnet", weights="none", input_size=32)
    teacher = timm_teacher.build(config, CLASS_NAMES)
    return replace(data, source=LiveTeacher(teacher=teacher, keys_N=data.keys_N, views=VIEWS, view_seed=0))


class TestSimKD:
    LOSS: Mapping[str, Any] = {
        "ce": 0.4,
        "kl": {"weight": 0.6, "temperature": 2.0, "normalize": False},
        "embedding": {"kind": "simkd", "weight": 2.0, "normalize": False},
    }

    @staticmethod
    def by_hand(objective: Objective, embedding_BD: Tensor) -> Tensor:
        """The teacher's classifier on the projected embedding; the mean over members."""
        embedding: Any = objective.terms["embedding"]
        losses = [getattr(term, "loss", term) for term in embedding]
        logits = [loss.student_projector(embedding_BD) @ loss.weight_KT.T + loss.bias_K for loss in losses]
        return torch.stack(logits).mean(dim=0)

    def test_all_terms_see_its_logits(self) -> None:
        data = mixed_data()
        objective = objective_of(config_of(self.LOSS), data)
        batch = whole_batch(data)
        out = objective.student(batch.images_BCHW)
        logits_BK = self.by_hand(objective, out.embedding_BD)
        assert not torch.allclose(logits_BK, out.logits_BK, atol=0.1)
        embedding: Any = objective.terms["embedding"]
        distance = (embedding[0].student_projector(out.embedding_BD) - batch.teacher.embedding_BT).square().mean()
        kl = 4 * F.kl_div(
            (logits_BK / 2).log_softmax(1), (batch.teacher.logits_BK / 2).softmax(1), reduction="batchmean"
        )
        expected = 0.4 * F.cross_entropy(logits_BK, batch.labels_B) + 0.6 * kl + 2 * distance
        torch.testing.assert_close(objective(batch), expected)

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("members", ["one", "separate", "concatenated"])
    def test_the_exported_classifier_is_the_one_that_was_trained(
        self, members: str, normalize: bool, tmp_path: Path
    ) -> None:
        data = mixed_data()
        if members != "one":
            data = replace(data, source=pair_of(data, separate=members == "separate"))
        loss = {**self.LOSS, "embedding": {"kind": "simkd", "normalize": normalize}}
        trainer = trainer_of(config_of(loss, precision="bf16" if normalize else "fp32"), data)
        before = copy.deepcopy(trainer.student.state_dict())
        trainer.run_epoch()
        for name, value in students.export(trainer.student, CLASS_NAMES).items():
            (tmp_path / name).write_bytes(value)
        images_BCHW = data.val.images_BCHW.float() / 255
        trainer.student.eval()
        with torch.no_grad():
            expected = self.by_hand(trainer.objective, trainer.student(images_BCHW).embedding_BD)
            found = students.load(tmp_path)(images_BCHW).logits_BK
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.equal(before["model.classifier.weight"], trainer.student.model.classifier.weight)

    def test_other_losses_keep_the_students_own_classifier(self) -> None:
        objective = objective_of(config_of({"ce": 1.0, "embedding": {"kind": "cosine"}}), mixed_data())
        before = copy.deepcopy(objective.state_dict())
        objective.settle()
        assert not moved(before, objective.state_dict())


def pair_of(data: TrialData, *, separate: bool) -> Any:
    """An ensemble of the data's teacher and a narrower one, whose logits are their classifiers on their embeddings."""
    wide = made_up_targets(data.train, data.keys_N)
    generator = torch.Generator().manual_seed(8)
    members = []
    for width in (WIDTH, 4):
        embedding = wide.columns["embedding"][..., :width].float() + 1
        weight_KT = torch.randn(len(CLASS_NAMES), width, generator=generator)
        bias_K = 3 * torch.randn(len(CLASS_NAMES), generator=generator)
        logits = (embedding @ weight_KT.T + bias_K).half()
        columns = {"logits": logits, "embedding": embedding.half(), "pre_embedding": (embedding - 1).half()}
        members.append(replace(wide, columns=columns, classifiers=((weight_KT, bias_K),), widths=(width,)))
    return sources.together(members, separate=separate)


class Perfect(nn.Module):
    """A projector that gives what is wanted, whatever the student says."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, _: Tensor) -> Tensor:
        return self.target


class TestSeparateMembers:
    SLICES = (slice(0, WIDTH), slice(WIDTH, WIDTH + 4))

    @pytest.mark.parametrize("use", ["same", "align_only"])
    def test_the_loss_is_the_mean_over_members(self, use: str) -> None:
        data = mixed_data()
        data = replace(data, source=pair_of(data, separate=True))
        objective = objective_of(config_of(only("embedding", **RAW_UNIFORM), {"embedding": use}), data)
        batch = whole_batch(data)
        terms: Any = objective.terms
        values = []
        for i, own in enumerate(self.SLICES):

            def seen(rows: slice, own: slice = own) -> LossInputs:
                return inputs_of(objective, batch, rows, teacher_embedding_BT=batch.teacher.embedding_BT[rows, own])

            if use == "same":
                values.append(terms["embedding"][i](seen(slice(None))))
            else:
                real = terms["embedding"][i](seen(slice(NUM_REAL)))
                made = terms["align"][i](seen(slice(NUM_REAL, None)))
                values.append((NUM_REAL * real + (NUM - NUM_REAL) * made) / NUM)
        assert abs(value(values[0] - values[1])) > 1e-3
        torch.testing.assert_close(objective(batch), torch.stack(values).mean())

    def test_each_has_projectors_of_its_own_width(self) -> None:
        data = mixed_data()
        data = replace(data, source=pair_of(data, separate=True))
        objective = objective_of(config_of(only("embedding", kind="cosine")), data)
        embedding: Any = objective.terms["embedding"]
        assert [term.student_projector[0].out_features for term in embedding] == [WIDTH, 4]
        data = replace(data, source=pair_of(data, separate=False))
        embedding = objective_of(config_of(only("embedding", kind="cosine")), data).terms["embedding"]
        assert [term.student_projector[0].out_features for term in embedding] == [WIDTH + 4]

    def test_each_sees_its_own_pool(self) -> None:
        """KDEP's buffers are the mean and the components of one member's embeddings."""
        data = mixed_data()
        source = pair_of(data, separate=True)
        objective = objective_of(config_of(only("embedding", kind="kdep")), replace(data, source=source))
        embedding: Any = objective.terms["embedding"]
        pool_NT = source.columns["pre_embedding"][:, 0].float()
        for term, own in zip(embedding, self.SLICES, strict=True):
            torch.testing.assert_close(term.mean_T, pool_NT[:, own].mean(dim=0))

    def test_perfect_members_classify_as_the_ensemble_does(self) -> None:
        """SimKD's logits are the averaged ones where each projected embedding is its member's."""
        data = mixed_data()
        source = pair_of(data, separate=True)
        objective = objective_of(config_of(only("embedding", kind="simkd")), replace(data, source=source))
        batch = whole_batch(replace(data, source=source))
        embedding: Any = objective.terms["embedding"]
        for term, own in zip(embedding, self.SLICES, strict=True):
            term.student_projector = Perfect(batch.teacher.embedding_BT[:, own])
        found = TestSimKD.by_hand(objective, torch.zeros(NUM, 1))
        torch.testing.assert_close(found, batch.teacher.logits_BK, rtol=0, atol=float(found.abs().max()) * 2.0**-8)

    def test_each_is_compared_with_its_own_logits_by_its_own_classifier(self) -> None:
        """A student that has a member's embedding has its logits: SRRL's terms are both 0 (one teacher's are)."""

        for separate in (False, True):
            data = mixed_data()
            data = replace(data, source=pair_of(data, separate=separate))
            objective = objective_of(config_of(only("embedding", kind="srrl")), data)
            batch = whole_batch(data)
            embedding: Any = objective.terms["embedding"]
            slices = self.SLICES if separate else (slice(None),)
            for term, own in zip(embedding, slices, strict=True):
                term.connector = Perfect(batch.teacher.embedding_BT[:, own])
            largest = float(batch.teacher.logits_BK.abs().max())
            assert value(objective(batch)) < (largest * 2.0**-8) ** 2, f"separate: {separate}"

    @pytest.mark.parametrize("kind", CACHED)
    @pytest.mark.parametrize("separate", [False, True])
    def test_every_cached_loss_works_with_an_ensemble(self, kind: str, separate: bool) -> None:
        data = mixed_data()
        data = replace(data, source=pair_of(data, separate=separate))
        objective = objective_of(config_of({"ce": 0.0, "embedding": {"kind": kind}}), data)
        loss = objective(whole_batch(data))
        loss.backward()
        assert loss.isfinite()
        parts = [module for name, module in objective.terms.named_parameters()]
        assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)
