"""Pre-training on an unlabelled pool, from the file to the ledger: what is asked for, planned, trained and charged."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from PIL import Image
from safetensors.torch import save as save_tensors
from samples import (
    ARCHITECTURE,
    CLASS_NAMES,
    SIZE,
    VIEWS,
    MemorySlot,
    always,
    commit_artifact,
    commit_images,
    dataset_index,
    space_of,
    sweep_config,
    trial_data,
)
from small_sweep import Built, Stages, space_tree

from sweeper import adapted, artifacts, checkpoints, desk, harvest, spacefile, train
from sweeper import student as students
from sweeper.batches import DataRefs, TeacherRefs, TrialData
from sweeper.checkpoints import state_of
from sweeper.config import SweepConfig
from sweeper.console import Console
from sweeper.data_cache import DataCache
from sweeper.datasets import DatasetIndex
from sweeper.errors import InputError, SpaceError
from sweeper.lane import LanePool
from sweeper.ledger import Charge, Cost, training_charges
from sweeper.outcome import EpochReport, Outcome, TrialFailed
from sweeper.plan import Plan, artifact_uses, make_plan
from sweeper.prepared import Options, Prepared, header, prepare
from sweeper.results import COLUMNS, RunFolder
from sweeper.store import Record, Store
from sweeper.study import Study
from sweeper.sweep import Sweep, data_refs, pool_refs
from sweeper.teachers import timm as timm_teacher
from sweeper.tracking import Tracking
from sweeper.train import Trainer, World, fit
from sweeper.trial import NO_TEACHER, Pretrain, StudentConfig, TrialConfig
from sweeper.worker import Job

CPU = torch.device("cpu")
PATIENCE_S = 180.0  # a deadline, not a duration
KDEP = {"embedding": {"kind": "kdep"}}


def point(teacher: str = NO_TEACHER, *, pool: str = "tenth", **sections: Any) -> TrialConfig:
    """Taught by `vit` on a pool, and on the task by `teacher`."""
    tree: dict[str, Any] = {
        "teacher": teacher,
        "student": {"model": ARCHITECTURE},
        "loss": {"ce": 0.5, "kl": {"weight": 1.0}},
        "pretrain": {"pool": pool, "teacher": "vit", "train": {"epochs": 7}},
    }
    return TrialConfig.model_validate({**tree, **sections})


class TestPoint:
    def test_a_pool_stays_and_the_tasks_losses_go_with_the_tasks_teacher(self) -> None:
        found = point().resolved()
        assert found.pretrain == point().pretrain
        assert (found.teacher, found.loss.ce, found.loss.kl.weight) == (NO_TEACHER, 1.0, 0.0)
        assert found.needs == frozenset(), "the teacher of the pool is not asked about the task"
        assert (found.taught_by, found.loss_name) == ("vit", "kdep@tenth > ce")
        assert found.resolved() == found

    def test_without_a_pool_nothing_of_the_section_counts(self) -> None:
        found = point("cnn", pool="none").resolved()
        assert found == point("cnn", pretrain={}).resolved()
        assert found.pretrain == Pretrain()
        assert found.pretraining is None
        assert (found.taught_by, found.loss_name) == ("cnn", "ce+kl")
        assert point(pool="none").taught_by == NO_TEACHER

    def test_every_teacher_that_is_heard_is_named_once(self) -> None:
        assert point("cnn").taught_by == "vit > cnn"
        assert point("vit").taught_by == "vit"
        assert point("vit").loss_name == "kdep@tenth > ce+kl"

    def test_the_first_training_has_its_own_teacher_losses_and_recipe(self) -> None:
        first = point("cnn", synthetic={"source": "sd", "ratio": 2}).pretraining
        assert first is not None
        assert (first.teacher, first.loss_name, first.train.epochs) == ("vit", "kdep", 7)
        assert first.loss.ce == 0, "a pool has no labels"
        assert first.needs == {"pre_embedding", "pool"}
        assert first.synthetic.ratio == 0
        assert first.student == point().student
        assert first.pretraining is None

    def test_the_first_trainings_losses_can_be_chosen(self) -> None:
        section = {"pool": "p", "teacher": "vit", "loss": {"kl": {"weight": 2}, "embedding": {"kind": "cosine"}}}
        first = point(pretrain=section).pretraining
        assert first is not None
        assert (first.loss_name, first.needs) == ("kl+cosine", {"logits", "embedding"})
        alone = point(pretrain={**section, "loss": {"kl": {"weight": 2}}})
        assert alone.loss_name == "kl@p > ce+kl"

    def test_it_comes_back_from_what_a_job_and_a_journal_hold(self) -> None:
        for one in (point().resolved(), point("cnn").resolved(), point("cnn", pool="none").resolved()):
            assert TrialConfig.model_validate(one.model_dump(mode="json")) == one

    def test_weights_of_zero_make_no_difference(self) -> None:
        section = {"pool": "p", "teacher": "vit", "loss": {"kl": {"weight": 1}}}
        off = {**section, "loss": {"kl": {"weight": 1}, "embedding": {"kind": "kdep", "weight": 0}}}
        assert point(pretrain=off).resolved() == point(pretrain=section).resolved()


# ------------------------------------------------------------------------------------------------- the file

SPACE = """\
name: pre
dataset: {kind: digits, train_per_class: 2, image_size: 16}
views: {per_image: 2}
teachers:
  cnn: {kind: timm, model: test_resnet, weights: none, adapt: linear_probe}
  vit: {kind: timm, model: test_vit, weights: none, input_size: 16}
pools:
  tenth: {kind: digits_pool, count: 40, image_size: 16}
  half: {kind: digits_pool, count: 80, image_size: 16}
trial:
  pretrain:
    pool: {choice: [none, tenth]}
    teacher: cnn
    loss: {embedding: {kind: kdep}}
    train: {epochs: 2, batch_size: 16}
  teacher: {choice: [vit, none]}
  student: {model: test_efficientnet}
  loss: {kl: {weight: 1}}
  train: {epochs: 2, batch_size: 16}
search: {trials: 2}
"""


def changed(*pairs: tuple[str, str]) -> str:
    text = SPACE
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} has to stand in exactly one place"
        text = text.replace(old, new)
    return text


def load(folder: Path, text: str = SPACE) -> spacefile.SpaceFile:
    path = folder / "x.yaml"
    path.write_text(text)
    return spacefile.load(path)


def prepared(folder: Path, text: str = SPACE) -> Prepared:
    return prepare(load(folder, text), Options(results=str(folder / "results"), store=str(folder / "store")))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        load(folder, text)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


TEACHER_LINE, POOL_LINE = "    teacher: cnn\n", "choice: [none, tenth]"
KDEP_LINE = "loss: {embedding: {kind: kdep}}"


@pytest.mark.parametrize(
    ("pair", "line", "path", "fragments"),
    [
        ((TEACHER_LINE, ""), 11, "trial.pretrain", ["needs `teacher:`, a name under `teachers:`"]),
        ((TEACHER_LINE, "    teacher: none\n"), 11, "trial.pretrain", ["needs `teacher:`"]),
        ((TEACHER_LINE, "    teacher: {choice: [cnn], when: {pretrain.pool: none}}\n"), 11, "trial.pretrain", [
            "needs `teacher:`"]),
        ((POOL_LINE, "choice: [none, tenht]"), 12, "trial.pretrain.pool", [
            "'tenht' is not named under pools; did you mean 'tenth'?", "allowed: tenth, half, none"]),
        ((TEACHER_LINE, "    teacher: cmn\n"), 13, "trial.pretrain.teacher", [
            "'cmn' is not named under teachers; did you mean 'cnn'?", "allowed: cnn, vit, none"]),
        (("count: 80, image_size: 16", "count: 80, image_size: 24"), 9, "pools.half.image_size", [
            "has to be the dataset's, 16; given 24"]),
        (("  half: {", "  none: {"), 7, "pools", ["'none' means no pre-training and cannot name a pool"]),
        (("count: 80", "count: 1"), 9, "pools.half.count", ["has to be at least 2; given 1"]),
        (("half: {kind: digits_pool", "half: {kind: digit_pool"), 9, "pools.half.kind", ["'digits_pool'?"]),
        ((POOL_LINE, "uniform: [0, 1]"), 12, "trial.pretrain.pool", [
            "has to be a constant or a choice, because the teacher's targets of a pool are cached"]),
        (("kind: kdep", "kind: kdpe"), 14, "trial.pretrain.loss.embedding.kind", ["did you mean 'kdep'?"]),
        (("    pool: {", "    poll: {"), 12, "trial.pretrain.poll", ["did you mean 'pool'?"]),
        ((KDEP_LINE, "loss: {ce: 1}"), 14, "trial.pretrain.loss.ce", ["'ce' is not a setting"]),
    ],
)  # fmt: skip
def test_a_mistake_is_said_at_its_line(
    tmp_path: Path, pair: tuple[str, str], line: int, path: str, fragments: list[str]
) -> None:
    found = problems(tmp_path, changed(pair))
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}: ")
    assert f"(x.yaml:{line}" in found[0]
    assert all(fragment in found[0] for fragment in fragments), found[0]


REFUSED = {
    "nothing to train": "loss: {embedding: {kind: none}}",
    "weight 0": "loss: {embedding: {kind: kdep, weight: {choice: [0, 1]}}}",
    "a setting without effect": "loss: {embedding: {kind: kdep, tau: 0.1}}",
    "labels": "loss: {embedding: {kind: dkd}}",
}


@pytest.mark.parametrize("loss", REFUSED.values(), ids=REFUSED)
def test_a_pretraining_that_can_not_work_is_refused(tmp_path: Path, loss: str) -> None:
    found = problems(tmp_path, changed((KDEP_LINE, loss)))
    assert len(found) == 1
    assert found[0].startswith("trial.pretrain.")
    assert "(x.yaml:14" in found[0]


def test_an_ensemble_can_not_run_in_the_loop_of_a_pretraining(tmp_path: Path) -> None:
    both = "pools:\n"
    text = changed(
        ("pools:\n", f"  both: {{kind: ensemble, members: [cnn, vit]}}\n{both}"),
        (TEACHER_LINE, "    teacher: both\n"),
        (KDEP_LINE, "loss: {embedding: {kind: at}}"),
    )
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith("trial.pretrain.loss.embedding.kind: 'at' runs the teacher in the loop")


def test_the_resolved_file_is_the_same_run(tmp_path: Path) -> None:
    config = load(tmp_path).config
    resolved = spacefile.resolved(config)
    assert resolved["trial"]["pretrain"]["train"]["lr"] == 1e-3
    again = load(tmp_path, yaml.safe_dump(resolved, sort_keys=False)).config
    assert spacefile.identity(again) == spacefile.identity(config)


def test_data_without_labels_is_no_dataset(tmp_path: Path) -> None:
    text = changed(("{kind: digits, train_per_class: 2, image_size: 16}", "{kind: digits_pool, image_size: 16}"))
    with pytest.raises(InputError, match=r"'digits_pool' has no labels, and can stand under `pools:` only \(.*:2\)"):
        prepared(tmp_path, text)


def test_a_pool_that_is_never_asked_for_is_not_even_looked_at(tmp_path: Path) -> None:
    away = "half: {kind: unlabelled_folder, root: /nowhere, image_size: 16}"
    half = ("half: {kind: digits_pool, count: 80, image_size: 16}", away)
    plan = prepared(tmp_path, changed(half)).plan
    assert plan.pools.keys() == plan.pool_indexes.keys() == {"tenth"}
    plan = prepared(tmp_path, changed(half, (POOL_LINE, "choice: [none]"))).plan
    assert [(item.kind, item.name) for item in plan.artifacts()] == [
        ("images", "pre"),
        ("adapt", "vit"),
        ("targets", "vit"),
    ]
    with pytest.raises(InputError, match="/nowhere: no such folder"):
        prepared(tmp_path, changed(half, (POOL_LINE, "choice: [none, half]")))


def test_the_run_is_another_one_where_a_pools_images_are(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for level in range(3):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(root / f"{level}.png")
    text = changed(
        (
            "tenth: {kind: digits_pool, count: 40, image_size: 16}",
            f"tenth: {{kind: unlabelled_folder, root: {root}, image_size: 16}}",
        )
    )
    ids = [prepared(tmp_path, text).folder.run_id]
    assert prepared(tmp_path, text).folder.run_id == ids[0]
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "0.png")
    ids.append(prepared(tmp_path, text).folder.run_id)
    assert ids[0] != ids[1]


def test_the_header_says_how_many_images_a_pool_has(tmp_path: Path) -> None:
    expected: Any = SimpleNamespace(line=str)
    lines = [line.split() for line in header(prepared(tmp_path), expected)]
    assert ["pool", "40", "unlabelled", "images", "(tenth)"] in lines
    assert not any("(half)" in line for line in lines)


# ------------------------------------------------------------------------------------------------- the plan


def pool_index(num: int, content: str = "p0") -> DatasetIndex:
    ids = [f"pool/{i}" for i in range(num)]
    return DatasetIndex((), ids, np.zeros(num, dtype=np.int64), ["train"] * num, ids, content)


INDEXES = {"tenth": pool_index(10, "p10"), "half": pool_index(50, "p50")}
POOLS = {name: {"kind": "digits_pool", "count": len(index)} for name, index in INDEXES.items()}
PRETRAIN = {"pool": {"choice": ["none", "tenth", "half"]}, "teacher": "vit", "loss": KDEP}
TASK = {"teacher": {"choice": ["cnn", "none"]}, "student": {"model": "test_resnet"}, "loss": {"kl": {"weight": 1.0}}}


def planned(
    store: Store,
    *,
    indexes: Mapping[str, DatasetIndex] = INDEXES,
    config: Mapping[str, Any] | None = None,
    **trial: Any,
) -> Plan:
    whole: SweepConfig = sweep_config(pools=POOLS, trial={**TASK, "pretrain": PRETRAIN, **trial}, **(config or {}))
    return make_plan(whole, space_of(whole), dataset_index(), store, indexes)


class TestPlan:
    def test_images_of_the_pools_and_the_columns_that_each_training_reads(self, store: Store) -> None:
        plan = planned(store)
        found = [(item.kind, item.name, item.units, item.spec.get("columns")) for item in plan.artifacts()]
        assert found == [
            ("images", "tiny", 27, None),
            ("images", "tenth", 10, None),
            ("images", "half", 50, None),
            ("adapt", "cnn", 12, None),
            ("adapt", "vit", 12, None),
            ("targets", "cnn", 48, ["logits"]),  # 4 views
            ("targets", "vit", 40, ["pre_embedding"]),
            ("targets", "vit", 200, ["pre_embedding"]),
        ]
        place = {item.key: number for number, item in enumerate(plan.artifacts())}
        assert all(place[key] < place[item.key] for item in plan.artifacts() for key in item.dependencies)
        assert {pair: plan.targets[pair].dependencies for pair in plan.targets} == {
            (teacher, key): (plan.adapt[teacher].key, key) for teacher, key in plan.targets
        }
        assert plan.adapt["vit"].dependencies == (plan.images.key,), "the classifier is probed on the task"

    def test_one_teacher_for_both_says_of_each_only_what_is_read_there(self, store: Store) -> None:
        plan = planned(store, pretrain={**PRETRAIN, "teacher": "cnn"})
        columns = {key: item.spec["columns"] for (_, key), item in plan.targets.items()}
        assert columns == {
            plan.images.key: ["logits"],
            plan.pools["tenth"].key: ["pre_embedding"],
            plan.pools["half"].key: ["pre_embedding"],
        }
        assert list(plan.adapt) == ["cnn"]

    def test_the_task_alone_plans_what_it_did(self, store: Store) -> None:
        without = planned(store, pretrain={**PRETRAIN, "pool": "none"}, indexes={})
        assert without.pools == {}
        keys = {item.key for item in planned(store).artifacts()}
        assert {item.key for item in without.artifacts()} < keys

    def test_a_condition_is_honoured(self, store: Store) -> None:
        loss = {"kl": {"weight": {"choice": [0, 1]}}, "embedding": {"kind": {"choice": ["none", "cosine"]}}}
        loss["kl"]["weight"] = {"choice": [1], "when": {"pretrain.loss.embedding.kind": "none"}}
        plan = planned(store, pretrain={"pool": "tenth", "teacher": "vit", "loss": loss}, teacher="none")
        assert plan.targets["vit", plan.pools["tenth"].key].spec["columns"] == ["embedding", "logits"]
        assert len(plan.targets) == 1

    def test_a_teacher_in_the_loop_has_no_targets_of_the_pool(self, store: Store) -> None:
        pretrain = {**PRETRAIN, "pool": "tenth", "loss": {"embedding": {"kind": "at"}}}
        plan = planned(store, pretrain=pretrain, teacher="none")
        assert (list(plan.adapt), plan.targets, list(plan.pools)) == (["vit"], {}, ["tenth"])
        refs = pool_refs(plan, point(pretrain=pretrain).resolved())
        assert refs is not None
        assert [teacher.targets for teacher in refs.teachers] == [()]

    def test_another_pool_has_other_keys_and_the_task_keeps_its_own(self, store: Store) -> None:
        other = planned(store, indexes={**INDEXES, "tenth": pool_index(10, "q10")})
        plan = planned(store)
        gone = {item.key for item in plan.artifacts()} - {item.key for item in other.artifacts()}
        tenth = plan.pools["tenth"].key
        assert gone == {tenth, plan.targets["vit", tenth].key}

    def test_equal_pools_are_built_once(self, store: Store) -> None:
        plan = planned(store, indexes={**INDEXES, "half": INDEXES["tenth"]})
        keys = [item.key for item in plan.artifacts()]
        assert len(set(keys)) == len(keys)

    def test_of_a_labelled_pool_the_training_images_count(self, store: Store) -> None:
        plan = planned(store, indexes={**INDEXES, "half": dataset_index(12)})
        assert plan.targets["vit", plan.pools["half"].key].units == 12 * 4

    def test_what_a_trial_is_charged_for(self, store: Store) -> None:
        plan = planned(store)

        def used(trial: TrialConfig) -> list[tuple[str, str, int, float]]:
            return [(u.artifact.kind, u.artifact.name, u.artifact.units, u.share) for u in plan.uses(trial.resolved())]

        assert used(point(pool="none")) == []
        assert used(point()) == [("adapt", "vit", 12, 1.0), ("targets", "vit", 40, 1.0)]
        assert used(point("cnn", pool="half")) == [
            ("adapt", "cnn", 12, 1.0),
            ("adapt", "vit", 12, 1.0),
            ("targets", "cnn", 48, 1.0),
            ("targets", "vit", 200, 1.0),
        ]

    def test_one_teacher_for_both_is_adapted_and_charged_once(self, store: Store) -> None:
        pretrain = {**PRETRAIN, "pool": "tenth", "teacher": "cnn"}
        plan = planned(store, pretrain=pretrain)
        trial = point("cnn", pretrain=pretrain).resolved()
        assert [use.artifact.kind for use in plan.uses(trial)] == ["adapt", "targets", "targets"]
        records = {}
        for item in plan.artifacts():
            charge = Charge(stage=item.kind, key=item.key, seconds=item.units, device="cpu", units=item.units)  # type: ignore[arg-type]
            records[item.key] = commit_artifact(store, item, charge=None if item.kind == "images" else charge)
        cost = Cost.alone(3.0, artifact_uses(plan, trial, records))
        assert cost == Cost(adapt=12, targets=48 + 40, synthetic=0, train=3.0)

    def test_each_training_reads_its_own_artifacts(self, store: Store) -> None:
        plan = planned(store)
        trial = point("cnn", pool="half").resolved()
        half = plan.pools["half"].key
        assert pool_refs(plan, trial) == DataRefs(
            images=half,
            teachers=(
                TeacherRefs(
                    adapt=plan.adapt["vit"].key,
                    config=plan.config.teachers["vit"],
                    targets=(plan.targets["vit", half].key,),
                ),
            ),
        )
        task = data_refs(plan, trial)
        assert task == data_refs(plan, point("cnn", pool="none").resolved())
        assert [teacher.adapt for teacher in task.teachers] == [plan.adapt["cnn"].key]
        assert data_refs(plan, point().resolved()).teachers == ()
        assert pool_refs(plan, point("cnn", pool="none").resolved()) is None

    @pytest.mark.parametrize("way", ["concatenated", "separate"])
    def test_an_ensemble_can_teach_on_the_pool(self, store: Store, way: str) -> None:
        both = {"kind": "ensemble", "members": ["vit", "cnn"], "embedding": way}
        teachers = {**sweep_config().model_dump(mode="json")["teachers"], "both": both}
        pretrain = {**PRETRAIN, "teacher": "both", "pool": "tenth"}
        plan = planned(store, pretrain=pretrain, config={"teachers": teachers}, teacher="none")
        refs = pool_refs(plan, point(pretrain=pretrain).resolved())
        assert refs is not None
        tenth = plan.pools["tenth"].key
        assert [teacher.targets for teacher in refs.teachers] == [
            (plan.targets[name, tenth].key,) for name in ("vit", "cnn")
        ]
        assert refs.is_separate == (way == "separate")
        uses = plan.uses(point(pretrain=pretrain).resolved())
        assert [use.artifact.kind for use in uses] == ["adapt", "adapt", "targets", "targets"]


# ------------------------------------------------------------------------------------------------- the loop

NUM_POOL = 24
DROPOUT = {"drop_rate": 0.3}


def pool_data(**changes: Any) -> TrialData:
    """As the images stage leaves a pool: no classes, every label 0, nothing to validate on."""
    data = trial_data(NUM_POOL, taught=True)
    nothing = data.val.to(CPU)
    empty = replace(nothing, images_BCHW=nothing.images_BCHW[:0], labels_B=nothing.labels_B[:0])
    unlabelled = replace(data.train, labels_B=torch.zeros_like(data.train.labels_B))
    return replace(data, train=unlabelled, val=empty, test=None, class_names=(), **changes)


TASK_DATA, POOL_DATA = trial_data(), pool_data()


def two_trainings(
    loss: Mapping[str, Any] = KDEP, *, first: Mapping[str, Any] | None = None, **changes: Any
) -> TrialConfig:
    recipe = {"epochs": 3, "batch_size": 6, "lr": 3e-3, "epoch_size": 12}
    tree: dict[str, Any] = {
        "student": {"model": ARCHITECTURE},
        "train": recipe,
        "pretrain": {"pool": "p", "teacher": "t", "loss": loss, "train": {**recipe, **(first or {})}},
    }
    return TrialConfig.model_validate({**tree, **changes}).resolved()


def run(config: TrialConfig, slot: MemorySlot | None = None, report: Any = always, **options: Any) -> Outcome:
    given: dict[str, Any] = {"pool": POOL_DATA, "with_test": True, **options}
    return fit(config, TASK_DATA, seed=1, device=CPU, report=report, slot=slot or MemorySlot(), **given)


def same(one: Outcome, other: Outcome) -> bool:
    """Equal to the last bit, apart from the time that it took."""
    return replace(one, train_seconds=0, pretrain_seconds=0) == replace(other, train_seconds=0, pretrain_seconds=0)


def first_trainer(config: TrialConfig, data: TrialData = POOL_DATA) -> Trainer:
    first = config.pretraining
    assert first is not None
    return Trainer(first, replace(data, class_names=CLASS_NAMES), seed=1, device=CPU, world=World(), is_first=True)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.student.model.state_dict().items()}


class Remembering(MemorySlot):
    """Every checkpoint that was ever saved."""

    def __init__(self) -> None:
        super().__init__()
        self.every: list[bytes] = []

    def save(self, state: bytes) -> None:
        self.every.append(state)


class TestFit:
    @pytest.mark.parametrize("loss", [KDEP, {"kl": {"weight": 1.0}}], ids=["kdep", "kl"])
    def test_the_task_goes_on_from_the_weights_of_the_pool(self, loss: Mapping[str, Any]) -> None:
        """Against the two trainings one after the other, by hand."""
        config = two_trainings(loss)
        first = first_trainer(config)
        for _ in range(3):
            first.run_epoch()
        second = Trainer(config, TASK_DATA, seed=1, device=CPU, world=World())
        began = weights_of(second)
        second.student.load_state_dict(first.student.state_dict())
        for _ in range(3):
            second.run_epoch()
        outcome = run(config)
        assert outcome.model == students.export(second.student, CLASS_NAMES)
        assert outcome.accuracy_val == train.accuracy(second.student, TASK_DATA.val)
        assert (outcome.state, outcome.epochs) == ("completed", 3)
        alone = run(config.model_copy(update={"pretrain": Pretrain()}), pool=None)
        assert outcome.model != alone.model
        assert any(not torch.equal(began[name], value) for name, value in weights_of(first).items())

    def test_kdep_leaves_the_classifier_as_it_was(self) -> None:
        config = two_trainings(first={"weight_decay": 0.1})
        trainer = first_trainer(config)
        before = weights_of(trainer)
        for _ in range(3):
            trainer.run_epoch()
        classifier = {name for name in before if name.startswith("classifier.")}
        assert classifier
        after = weights_of(trainer)
        assert {name for name in before if torch.equal(before[name], after[name])} >= classifier
        initial = students.build(StudentConfig(model=ARCHITECTURE), 3, TASK_DATA.image_size, 1).model.state_dict()
        assert all(torch.equal(after[name], initial[name]) for name in classifier)
        trained = [n for n, p in trainer.student.model.named_parameters() if not torch.equal(before[n], p.detach())]
        assert trained
        taught = first_trainer(two_trainings({"kl": {"weight": 1.0}}))
        taught.run_epoch()
        assert not torch.equal(weights_of(taught)["classifier.weight"], before["classifier.weight"])

    def test_reports_are_of_the_task_and_count_all_of_the_time(self) -> None:
        reports: list[EpochReport] = []
        outcome = run(two_trainings(first={"epochs": 2}), report=lambda done: reports.append(done) is None)
        assert [(done.epoch, done.epochs) for done in reports] == [(1, 3), (2, 3), (3, 3)]
        seconds = [done.train_seconds for done in reports]
        assert 0 < outcome.pretrain_seconds < seconds[0] < seconds[1] < seconds[2] == outcome.train_seconds
        assert outcome.accuracy_val == reports[-1].accuracy_val

    def test_seconds_are_those_of_both_trainings_on_every_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticking = itertools.count(10.0, 2.5)  # each look at the clock is 2.5 s after the last one
        monkeypatch.setattr(train.time, "perf_counter", lambda: next(ticking))
        monkeypatch.setattr(Trainer, "synchronised", lambda self: next(ticking))
        config = two_trainings(first={"epochs": 2})
        config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})
        outcome = run(config, world=World(1, 2))  # rank 1 writes no checkpoints, and does not look at the clock for it
        making, first_epochs, epoch = 2.5, 2 * 2.5, 2.5
        assert outcome.pretrain_seconds == 2 * (making + first_epochs)
        assert outcome.train_seconds == outcome.pretrain_seconds + 2 * (making + epoch)

    def test_a_restart_in_either_training_leaves_no_trace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From every checkpoint there can be: after each epoch but the last one of both trainings."""
        monkeypatch.setattr(checkpoints, "CHECKPOINT_INTERVAL_S", 0.0)
        monkeypatch.setattr(checkpoints, "CHECKPOINT_SHARE", math.inf)
        config = two_trainings(student={"model": ARCHITECTURE, "model_args": DROPOUT})
        slot = Remembering()
        undisturbed = run(config, slot)
        states = [state_of(state, CPU) for state in slot.every]
        assert [(state["is_first"], state["epoch"]) for state in states] == [
            (True, 1), (True, 2), (False, 1), (False, 2),
        ]  # fmt: skip
        for state in states:
            paid = state["seconds"] + 1000
            pretrained = state["pretrain_seconds"]
            groups = {name: value for name, value in state.items() if isinstance(value, dict)}
            facts = {name: value for name, value in state.items() if name not in groups}
            saved = checkpoints.packed(groups, {**facts, "seconds": paid})
            torch.manual_seed(99)  # another process: nothing of the first one's generators is left
            epochs: list[int] = []
            resumed = run(config, MemorySlot(saved), lambda done, seen=epochs: seen.append(done.epoch) is None)
            assert same(resumed, undisturbed)
            assert epochs == list(range(1 if state["is_first"] else state["epoch"] + 1, 4))
            assert resumed.train_seconds > paid, "time before the restart was paid for too"
            if state["is_first"]:
                assert paid < resumed.pretrain_seconds < resumed.train_seconds
            else:
                assert resumed.pretrain_seconds == pretrained > 0

    def test_dropout_makes_the_state_of_the_generator_count(self) -> None:
        """Without it the test above could pass by luck."""
        config = two_trainings(student={"model": ARCHITECTURE, "model_args": DROPOUT})
        one, other = first_trainer(config), first_trainer(config)
        one.run_epoch()
        torch.manual_seed(99)
        assert not torch.equal(
            one.student.model.state_dict()["conv_stem.weight"], weights_of(other)["conv_stem.weight"]
        )

    @pytest.mark.parametrize("way", ["learning rate", "targets"])
    def test_a_pretraining_that_is_not_finite_fails_the_trial(self, way: str) -> None:
        config, pool = two_trainings(first={"epochs": 5, "lr": 1e9, "warmup": 0.0}), POOL_DATA
        if way == "targets":
            source: Any = POOL_DATA.source
            logits = torch.full_like(source.columns["logits"], math.nan)
            pool = replace(POOL_DATA, source=replace(source, columns={"logits": logits}))
            config = two_trainings({"kl": {"weight": 1.0}}, first={"epochs": 5})
        reports: list[int] = []
        with pytest.raises(TrialFailed, match=r"the loss became (nan|inf) in epoch \d of 5"):
            run(config, report=lambda done: reports.append(done.epoch) is None, pool=pool)
        assert reports == []

    @pytest.mark.parametrize("kind", ["crd", "soft_nn"])
    def test_the_labels_of_a_pool_are_never_read(self, kind: str) -> None:
        config = two_trainings({"kl": {"weight": 1}, "embedding": {"kind": kind}})
        others = replace(POOL_DATA.train, labels_B=torch.arange(NUM_POOL) % 3)
        assert same(run(config), run(config, pool=replace(POOL_DATA, train=others)))

    def test_an_embedding_loss_of_weight_zero_is_none(self) -> None:
        off = two_trainings({"kl": {"weight": 1}, "embedding": {"kind": "kdep", "weight": 0}})
        source: Any = POOL_DATA.source
        planned_only = replace(source, columns={"logits": source.columns["logits"]})
        found = run(off, pool=replace(POOL_DATA, source=planned_only))
        assert same(found, run(two_trainings({"kl": {"weight": 1}})))

    def test_a_pretraining_without_its_pool_is_a_defect(self) -> None:
        with pytest.raises(AssertionError):
            run(two_trainings(), pool=None)

    def test_a_stop_is_that_of_the_task(self) -> None:
        outcome = run(two_trainings(), report=lambda done: done.epoch < 2)
        assert (outcome.state, outcome.epochs) == ("stopped", 2)

    def test_pretraining_helps_where_labels_are_few(self) -> None:
        """With learning rate ~0 on the task, what the student knows of colours came over the pool."""
        recipe = {"epochs": 12, "batch_size": 12, "epoch_size": 48, "lr": 5e-3}
        frozen = {"epochs": 1, "batch_size": 6, "lr": 1e-12, "weight_decay": 0.0}
        config = two_trainings({"kl": {"weight": 1.0}}, first=recipe, train=frozen)
        assert run(config).accuracy_val > 0.8
        assert run(config.model_copy(update={"pretrain": Pretrain()}), pool=None).accuracy_val < 0.7


# ------------------------------------------------------------------------------------------------- the ledger


def test_the_parts_of_a_training_add_up() -> None:
    both = training_charges("trial-00001", 10.0, "cpu", 4, pretrain_seconds=7.0, pretrain_epochs=9)
    assert both == [
        Charge(stage="pretrain", key="trial-00001", seconds=7.0, device="cpu", units=9),
        Charge(stage="train", key="trial-00001", seconds=3.0, device="cpu", units=4),
    ]
    assert training_charges("t", 10.0, "cpu", 4) == [
        Charge(stage="train", key="t", seconds=10.0, device="cpu", units=4)
    ]


class Searched:
    """A study of trials with a pre-training, and a desk that settles them without a lane."""

    def __init__(self, folder: Path) -> None:
        config = sweep_config(pools=POOLS, trial={**TASK, "pretrain": {**PRETRAIN, "pool": "tenth"}})
        self.book = Study(folder / "journal", config.search, space_of(config), seed=0)
        self.desk = desk.Desk(self.book, config.search, self.cost, 0.0)

    @staticmethod
    def cost(trial: TrialConfig, seconds: float) -> Cost:
        return Cost(adapt=5.0, train=seconds)

    def settle(self, end: Mapping[str, Any], *curve: list[float]) -> dict[str, Any]:
        proposed = self.desk.propose()
        assert proposed is not None
        for epoch, accuracy, loss, seconds in curve:
            report = {"epoch": epoch, "epochs": 40, "accuracy_val": accuracy, "loss": loss, "train_seconds": seconds}
            self.desk.report(proposed[0], report)
        number = self.desk.end(proposed[0], {"error": None, **end})["trial"]
        found: dict[str, Any] = self.book.trials()[number].user_attrs["outcome"]
        return found


def test_the_search_writes_down_what_was_pretraining(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    end = {"state": "completed", "train_seconds": 12.0, "pretrain_seconds": 7.5, "params": 3}
    outcome = searched.settle(end, [1, 0.5, 0.1, 12.0])
    assert (outcome["cost"]["train"], outcome["pretrain_seconds"]) == (12.0, 7.5)
    failed = searched.settle({"state": "failed", "error": "x"})
    assert (failed["cost"]["train"], failed["pretrain_seconds"]) == (0.0, 0.0)


def test_a_stopped_trial_would_not_have_been_pretrained_again(tmp_path: Path) -> None:
    searched = Searched(tmp_path)
    end = {"state": "stopped", "train_seconds": 110.0, "pretrain_seconds": 100.0}
    searched.settle(end, *[[epoch, 0.5, 0.1, 100.0 + 10 * epoch] for epoch in (1, 2)])
    (told,) = searched.book.trials()
    outcome = told.user_attrs["outcome"]
    assert (outcome["epochs"], outcome["num_epochs"]) == (2, 40)
    assert told.values[1] * 3600 == pytest.approx(5.0 + 100.0 + 10.0 / (2 / 40))


# ------------------------------------------------------------------------------------------------- on a lane


def test_a_teacher_in_the_loop_of_a_pool_knows_the_tasks_classes(store: Store) -> None:
    """With `adapt: none` its own classifier is that of the task, which is stored."""
    made = commit_images(store, {"train": 6})
    rows = store.read_bytes(made, "rows.parquet")
    names = [str(digit) for digit in range(10)]
    for key, class_names in (("task", names), ("pool", [])):
        prefix = store.staging()
        store.write_bytes(prefix, "rows.parquet", rows)
        meta = {"image_size": SIZE, "class_names": class_names}
        store.commit(key, "images", {"name": key}, prefix, meta=meta, rows=made.rows)
    config = timm_teacher.Config(weights="zoo:cnn", adapt="none")
    prefix = store.staging()
    head = timm_teacher.build(config, names).classifier
    assert head is not None
    store.write_bytes(prefix, adapted.CLASSIFIER_FILE, save_tensors(head.state_dict()))
    store.commit("adapt", "adapt", {"name": "adapt"}, prefix, meta={"adapt": "none"}, dependencies=["task"])
    refs = DataRefs(images="pool", teachers=(TeacherRefs(adapt="adapt", config=config),))
    data = DataCache(store).trial_data(refs, needs=frozenset({"maps"}), view_config=VIEWS, view_seed=0, with_test=False)
    live: Any = data.source
    assert torch.equal(live.teacher.classifier.weight, head.weight)


def swept_tree(generator: Path) -> dict[str, Any]:
    """The tests' small sweep with a pre-training in every trial; its store holds all but the pool and its targets."""
    trial = {
        "pretrain": {"pool": "tenth", "teacher": "cnn", "train": {"epochs": 2, "batch_size": 16}},
        "student": {"model": ARCHITECTURE},
        "train": {"epochs": 2, "batch_size": 16, "lr": {"loguniform": [1.0e-3, 1.0e-2]}},
    }
    return space_tree(
        generator,
        name="swept",
        pools={"tenth": {"kind": "digits_pool", "count": 40, "image_size": 16}},
        trial=trial,
        search={"trials": 2, "sampler": "random", "scheduler": {"kind": "fifo"}, "front": "final"},
        finalists={"count": 1, "seeds": 1},
    )


@dataclass(frozen=True)
class Swept:
    """A whole run with a pre-training in every trial, and the job of one of them trained once more."""

    prepared: Prepared
    records: Mapping[str, Record]
    stages: Stages
    job: Job
    messages: list[dict[str, Any]]

    @property
    def folder(self) -> RunFolder:
        return self.prepared.folder

    def data(self, refs: DataRefs, config: TrialConfig) -> TrialData:
        return DataCache(self.prepared.store).trial_data(
            refs, needs=config.needs, view_config=self.job.views, view_seed=0, with_test=True
        )


@pytest.fixture(scope="module")
def swept(built: Built, pool: LanePool, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    options = Options(results=str(folder / "results"), store=built.store.uri)
    space = load(folder, yaml.safe_dump(swept_tree(built.generator), sort_keys=False))
    found, stages = prepare(space, options), Stages()
    records = artifacts.build(found.plan, found.store, stages)
    console = Console(quiet=True, stream=io.StringIO(), errors=io.StringIO())
    sweep = Sweep(found, records, pool, console, Tracking(found.folder, found.plan.config, console.message))
    found.folder.path.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk, "job_id", lambda number: f"swept-{number}")  # the lane's job names are shared
        book = sweep.search(folder / "work")
    finals = sweep.finalists(book)
    job = sweep.job(TrialConfig.model_validate(book.trials()[0].user_attrs["config"]), seed=3, final=True)
    pool.submit("swept again", job)
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] == "report":
        messages.append(ray.get(pool.mailbox.next_message.remote("swept again"), timeout=PATIENCE_S))
    found.folder.write_space(spacefile.resolved(found.plan.config))
    harvest.write(found.folder, found.plan, records, book, finals)
    return Swept(found, records, stages, job, messages)


def test_pools_are_built_like_datasets_and_read_without_classes(swept: Swept) -> None:
    opened = [(stage.name, stage.done) for stage in swept.stages.opened]
    assert opened == [("images (tenth)", 40), ("targets (cnn)", 40 * 3)], "the rest was there"
    assert swept.job.pool is not None
    first = TrialConfig.model_validate(swept.job.config).pretraining
    assert first is not None
    data = swept.data(swept.job.pool, first)
    assert (len(data.train), data.num_real, len(data.val), data.class_names) == (40, 40, 0, ())
    source: Any = data.source
    assert set(source.columns) == {"pre_embedding"}


def test_a_lane_trains_as_the_loop_does(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reports, and the same model to the last bit, as the two trainings in this process."""
    config = TrialConfig.model_validate(swept.job.config)
    first = config.pretraining
    assert first is not None
    assert swept.job.pool is not None
    reports: list[EpochReport] = []
    alone = fit(
        config,
        swept.data(swept.job.refs, config),
        pool=swept.data(swept.job.pool, first),
        seed=3,
        device=CPU,
        report=lambda done: reports.append(done) is None,
        slot=MemorySlot(),
        with_test=True,
    )
    *told, end = swept.messages
    assert [(m["epoch"], m["loss"], m["accuracy_val"]) for m in told] == [
        (r.epoch, r.loss, r.accuracy_val) for r in reports
    ]
    assert (end["state"], end["model"], end["accuracy_test"]) == ("completed", alone.model, alone.accuracy_test)
    assert 0 < end["pretrain_seconds"] < told[0]["train_seconds"] < end["train_seconds"]


def test_hours_of_pretraining_stand_beside_the_contracts_columns(swept: Swept) -> None:
    tables = {"trials": swept.folder.read_trials(), "pareto": swept.folder.read_pareto()}
    ablation = {row["role"]: row for row in swept.folder.read_ablation()}
    assert ablation.keys() == {"pretrained", "scratch"}
    assert ablation["scratch"]["gpu_hours_pretrain"] == 0
    rows = [*tables["trials"], *tables["pareto"], ablation["pretrained"]]
    assert len(rows) == 2 + 1 + 1
    for row in rows:
        assert list(row)[: len(COLUMNS)] == list(COLUMNS)
        assert (row["teacher"], row["loss"]) == ("cnn", "kdep@tenth > ce")
        assert 0 < row["gpu_hours_pretrain"] < row["gpu_hours_train"]
        assert row["gpu_hours_targets"] > 0
    assert ablation["scratch"]["teacher"] == NO_TEACHER
    assert ablation["scratch"]["gpu_hours_targets"] == 0


def test_the_ledger_tells_pretraining_apart_and_its_sum_stays(swept: Swept) -> None:
    ledger = swept.folder.read_ledger()
    seconds = {(row["stage"], row["key"]): row["seconds"] for row in ledger}
    assert len(seconds) == len(ledger)
    for trial in swept.folder.read_trials():
        key = f"trial-{trial['trial']:05d}"
        first, rest = seconds["pretrain", key], seconds["train", key]
        assert min(first, rest) > 0
        assert first == pytest.approx(trial["gpu_hours_pretrain"] * 3600, rel=1e-12)
        assert first + rest == pytest.approx(trial["gpu_hours_train"] * 3600, rel=1e-12)
    units = {row["units"] for row in ledger if row["stage"] == "pretrain"}
    assert units == {2}, "epochs, as those of the charges beside them"
    final = [key for stage, key in seconds if stage == "pretrain" and key.startswith("final-")]
    assert len(final) == 1, "the finalist and its arm are trained once, and scratch is not pre-trained"
    scratch = {key for stage, key in seconds if stage == "train" and key.startswith("final-")} - set(final)
    assert len(scratch) == 1
    assert {row["stage"] for row in ledger} == {"adapt", "targets", "pretrain", "train"}
