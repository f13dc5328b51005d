"""The plan: keys follow what decides the bytes and nothing else, and a trial is charged for what it uses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from samples import TRIAL_TREE, commit_artifact, dataset_index, space_of, sweep_config

from sweeper import student as students
from sweeper.ledger import ArtifactUse, Charge
from sweeper.plan import Artifact, Plan, artifact, artifact_uses, charges, make_plan
from sweeper.store import Store
from sweeper.sweep import data_refs
from sweeper.trial import StudentConfig, TrialConfig

TEACHERS: dict[str, Any] = {
    "cnn": {"kind": "timm", "model": "test_resnet", "weights": "none"},
    "vit": {"kind": "timm", "model": "test_vit", "weights": "none"},
}
SOURCE: dict[str, Any] = {"kind": "diffusers", "model": "nobody/nothing", "prompt": "a {label}", "max_ratio": 4}
STAGES = ("images", "adapt", "synthetic", "targets")


def plan_of(store: Store, index: Any = None, **changes: Any) -> Plan:
    config = sweep_config(**changes)
    return make_plan(config, space_of(config), index or dataset_index(), store)


def keys(plan: Plan) -> dict[str, set[str]]:
    return {stage: {item.key for item in plan.artifacts() if item.kind == stage} for stage in STAGES}


def with_trial(**sections: Any) -> dict[str, Any]:
    return {**TRIAL_TREE, **sections}


def trial(teacher: str = "cnn", ratio: float = 0.0) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "teacher": teacher,
            "student": {"model": "x"},
            "synthetic": {"source": "sd", "ratio": ratio},
            "loss": {"kl": {"weight": 1.0}},
        }
    ).resolved()


def build(plan: Plan, store: Store) -> None:
    """What is missing, with a charge of a second a unit."""
    for item in plan.missing(store):
        charge = Charge(stage=item.kind, key=item.key, seconds=item.units, device="cpu", units=item.units)  # type: ignore[arg-type]
        commit_artifact(store, item, charge=None if item.kind == "images" else charge)


def test_all_that_the_space_can_ask_for_is_planned_once(store: Store) -> None:
    plan = plan_of(store)
    artifacts = plan.artifacts()
    assert [(item.kind, item.name) for item in artifacts] == [
        ("images", "tiny"),
        ("adapt", "cnn"),
        ("adapt", "vit"),
        ("synthetic", "sd"),
        *[("targets", "cnn")] * 2,
        *[("targets", "vit")] * 2,
    ]
    assert len({item.key for item in artifacts}) == len(artifacts)
    place = {item.key: number for number, item in enumerate(artifacts)}
    assert all(place[key] < place[item.key] for item in artifacts for key in item.dependencies), "buildable in order"
    units = {(item.kind, item.units) for item in artifacts}
    # 12 training images, ratio 2: 24 generated ones; 4 views of each.
    assert units == {("images", 27), ("adapt", 12), ("synthetic", 24), ("targets", 48), ("targets", 96)}


def test_nothing_is_planned_that_no_point_can_use(store: Store) -> None:
    only = with_trial(teacher="vit", synthetic={"source": "sd", "ratio": 0})
    plan = plan_of(store, trial=only)
    assert [(item.kind, item.name) for item in plan.artifacts()] == [
        ("images", "tiny"),
        ("adapt", "vit"),
        ("targets", "vit"),
    ]
    alone = plan_of(store, trial={"student": {"model": "test_vit"}, "train": {"epochs": 1}})
    assert [item.kind for item in alone.artifacts()] == ["images"]
    apart = {"source": "sd", "ratio": {"choice": [0, 1], "when": {"teacher": "none"}}}
    plan = plan_of(store, trial=with_trial(synthetic=apart))
    assert plan.synthetic.keys() == {"sd"}
    assert {key for _, key in plan.targets} == {plan.images.key}, "no teacher ever sees the generated images"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"teachers": dict(reversed(TEACHERS.items()))},
        {"synthetic": {"sd": {**SOURCE, "batch_size": 3}}},
        {"synthetic": {"sd": {**SOURCE, "max_ratio": 9}}},
        {"search": {"trials": 99, "sampler": "random", "scheduler": {"kind": "asha"}}},
        {"finalists": {"count": 1, "seeds": 9}},
        {"resources": {"gpus_per_trial": 0.5, "workers_per_trial": 2}},
        {"views": {"per_image": 4, "flip": True, "match": "fixed", "jitter": {"hue": 0}}},
        {"trial": with_trial(loss={**TRIAL_TREE["loss"], "ce": 0.1}, train={"epochs": 1, "batch_size": 4})},
        {"trial": dict(reversed(TRIAL_TREE.items()))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_touch_the_bytes_keeps_the_keys(store: Store, changes: dict[str, Any]) -> None:
    assert keys(plan_of(store, **changes)) == keys(plan_of(store))


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"views": {"per_image": 5, "flip": True}}, {"targets"}),
        ({"views": {"per_image": 4, "flip": False}}, {"targets"}),
        ({"views": {"per_image": 4, "flip": True, "crop_scale": [0.4, 1.0]}}, {"targets"}),
        ({"views": {"per_image": 4, "flip": True, "jitter": {"hue": 0.1}}}, {"targets"}),
        ({"seed": 1}, {"adapt", "synthetic", "targets"}),
        ({"index": dataset_index(content="c1")}, {"images", "adapt", "targets"}),
        ({"index": dataset_index(class_names=("red", "green", "azure"))}, set(STAGES)),
        ({"dataset": {"kind": "digits", "train_per_class": 5, "image_size": 20}}, set(STAGES)),
        ({"teachers": {n: {**t, "adapt": "fine_tune"} for n, t in TEACHERS.items()}}, {"adapt", "targets"}),
        ({"teachers": {n: {**t, "input_size": 64} for n, t in TEACHERS.items()}}, {"adapt", "targets"}),
        ({"synthetic": {"sd": {**SOURCE, "guidance": 3.0}}}, {"synthetic", "made targets"}),
        ({"synthetic": {"sd": {**SOURCE, "prompt": "one {label}"}}}, {"synthetic", "made targets"}),
    ],
    ids=lambda value: " ".join(sorted(map(str, value))),
)
def test_what_touches_the_bytes_changes_the_keys_below_it_only(
    store: Store, changes: dict[str, Any], changed: set[str]
) -> None:
    def parts(plan: Plan) -> dict[str, set[str]]:
        real = {item.key for (_, images), item in plan.targets.items() if images == plan.images.key}
        found = keys(plan)
        return {**found, "targets": real, "made targets": found["targets"] - real}

    if "targets" in changed:
        changed = changed | {"made targets"}
    before, after = parts(plan_of(store)), parts(plan_of(store, **changes))
    for part in before:
        expected = set() if part in changed else before[part]
        assert before[part] & after[part] == expected, part


@pytest.mark.parametrize(
    ("views", "is_another"),
    [({"jitter": {"hue": 0.1}}, True), ({"crop_scale": [0.4, 1.0]}, True), ({"per_image": 9, "match": "fixed"}, False)],
    ids=str,
)
def test_a_fine_tuned_teacher_is_one_of_the_views_that_it_was_tuned_on(
    store: Store, views: dict[str, Any], is_another: bool
) -> None:
    teachers = {name: {**teacher, "adapt": "fine_tune"} for name, teacher in TEACHERS.items()}
    law = {"per_image": 4, "flip": True}
    before = plan_of(store, teachers=teachers, views=law)
    after = plan_of(store, teachers=teachers, views={**law, **views})
    for name in teachers:
        assert (after.adapt[name].key != before.adapt[name].key) == is_another


def test_weights_count_by_their_bytes_and_not_by_their_path(store: Store, tmp_path: Path) -> None:
    def folder(name: str, seed: int) -> str:
        student = students.build(StudentConfig(model="test_resnet"), 3, 32, seed)
        path = tmp_path / name
        path.mkdir()
        for file, data in students.export(student, ("a", "b", "c")).items():
            (path / file).write_bytes(data)
        return str(path)

    def adapt_keys(weights: str, model: str | None = None) -> set[str]:
        teachers = {**TEACHERS, "cnn": {"kind": "timm", "model": model, "weights": weights}}
        return keys(plan_of(store, teachers=teachers))["adapt"]

    one, copy, other = folder("one", 0), folder("copy", 0), folder("other", 1)
    assert adapt_keys(one) == adapt_keys(copy)
    assert len(adapt_keys(one) & adapt_keys(other)) == 1, "the vit's alone"
    file = tmp_path / "weights.safetensors"
    found = []
    for seed in (0, 1):
        student = students.build(StudentConfig(model="test_resnet"), 3, 32, seed)
        save_file({n: v.contiguous() for n, v in student.model.state_dict().items()}, file)
        found.append(adapt_keys(str(file), "test_resnet"))
    assert len(found[0] & found[1]) == 1


def test_the_key_holds_the_kind() -> None:
    assert artifact("adapt", {"a": 1}, "x", 1).key != artifact("images", {"a": 1}, "x", 1).key
    assert artifact("adapt", {"a": 1}, "x", 1, ["k"]).key == artifact("adapt", {"a": 1}, "y", 2).key


class TestMoreImagesLater:
    def plan(self, store: Store, *ratios: float) -> Plan:
        ratio = {"choice": list(ratios)} if len(ratios) > 1 else ratios[0]
        return plan_of(store, trial=with_trial(synthetic={"source": "sd", "ratio": ratio}))

    def ranges(self, plan: Plan) -> list[tuple[int, int]]:
        return [(part.spec["start"], part.spec["stop"]) for part in plan.synthetic["sd"]]

    def test_only_a_new_range_is_made(self, store: Store) -> None:
        first = self.plan(store, 0, 1)
        assert self.ranges(first) == [(0, 4)]
        build(first, store)
        second = self.plan(store, 0, 1, 2.5)
        assert self.ranges(second) == [(0, 4), (4, 10)]
        missing = second.missing(store)
        made = second.synthetic["sd"][1]
        assert [item.kind for item in missing] == ["synthetic", "targets", "targets"]
        assert missing[0] == made
        assert all(item.dependencies[1] == made.key for item in missing[1:])
        assert made.units == 18
        build(second, store)
        assert self.plan(store, 0, 1, 2.5).missing(store) == []
        assert self.plan(store, 0, 1).missing(store) == [], "the smaller space finds what it made"

    def test_fewer_images_use_a_part_of_the_larger_range(self, store: Store) -> None:
        build(self.plan(store, 0, 2), store)
        fewer = self.plan(store, 0, 0.5)
        assert self.ranges(fewer) == [(0, 8)]
        assert fewer.missing(store) == []
        assert [use.share for use in fewer.image_sets(trial(ratio=0.5))] == [1.0, 6 / 24]

    def test_a_plan_does_not_change_while_it_is_built(self, store: Store) -> None:
        build(self.plan(store, 0, 0.5), store)
        before = self.plan(store, 0, 2)
        for item in before.missing(store):
            commit_artifact(store, item)
            assert keys(self.plan(store, 0, 2)) == keys(before)

    def test_another_sources_ranges_do_not_count(self, store: Store) -> None:
        build(self.plan(store, 0, 1), store)
        other = plan_of(store, synthetic={"sd": {**SOURCE, "guidance": 3.0}})
        assert self.ranges(other) == [(0, 8)]

    @pytest.mark.parametrize("num_train", [10, 11, 12, 13])
    @pytest.mark.parametrize("ratio", [0.1, 0.5, 1, 1.3, 2])
    def test_there_are_always_enough(self, store: Store, num_train: int, ratio: float) -> None:
        only = with_trial(synthetic={"source": "sd", "ratio": ratio})
        plan = plan_of(store, index=dataset_index(num_train), trial=only)
        wanted = plan.num_synthetic(trial(ratio=ratio))
        made = sum(part.units for part in plan.synthetic["sd"])
        assert wanted == round(ratio * num_train)
        assert wanted <= made < wanted + 3, "three classes: no more than what makes the classes equal"


class TestUses:
    def test_what_a_trial_uses(self, store: Store) -> None:
        plan = plan_of(store)
        part = plan.synthetic["sd"][0]

        def used(one: TrialConfig) -> list[tuple[str, str, float]]:
            return [(use.artifact.kind, use.artifact.name, use.share) for use in plan.uses(one)]

        assert used(trial("none")) == []
        assert used(trial("none", 0.5)) == [("synthetic", "sd", 0.25)]
        assert used(trial("cnn")) == [("adapt", "cnn", 1.0), ("targets", "cnn", 1.0)]
        assert used(trial("vit", 2)) == [
            ("adapt", "vit", 1.0),
            ("synthetic", "sd", 1.0),
            ("targets", "vit", 1.0),
            ("targets", "vit", 1.0),
        ]
        shares = {use.artifact.key: use.share for use in plan.uses(trial("cnn", 0.5))}
        assert shares[plan.targets["cnn", part.key].key] == 0.25
        assert shares[plan.targets["cnn", plan.images.key].key] == 1.0

    def test_ranges_are_used_in_order(self, store: Store) -> None:
        build(plan_of(store, trial=with_trial(synthetic={"source": "sd", "ratio": 1})), store)
        plan = plan_of(store)
        assert [part.units for part in plan.synthetic["sd"]] == [12, 12]
        for ratio, shares in {0: [1], 0.5: [1, 0.5], 1: [1, 1], 1.5: [1, 1, 0.5], 2: [1, 1, 1]}.items():
            assert [use.share for use in plan.image_sets(trial(ratio=ratio))] == shares

    def test_the_ledger_gets_measured_seconds_and_shares(self, store: Store) -> None:
        plan = plan_of(store)
        build(plan, store)
        records = {item.key: record for item in plan.artifacts() if (record := store.get(item.key)) is not None}
        part = plan.synthetic["sd"][0]
        assert artifact_uses(plan, trial("cnn", 0.5), records) == {
            plan.adapt["cnn"].key: ArtifactUse("adapt", 12, 1.0),
            part.key: ArtifactUse("synthetic", 24, 0.25),
            plan.targets["cnn", plan.images.key].key: ArtifactUse("targets", 48, 1.0),
            plan.targets["cnn", part.key].key: ArtifactUse("targets", 96, 0.25),
        }
        assert math.fsum(c.seconds for c in charges(records.values())) == 12 + 12 + 24 + 2 * (48 + 96)


def test_missing_is_what_the_store_lacks(store: Store) -> None:
    plan = plan_of(store)
    assert plan.missing(store) == plan.artifacts()

    def left() -> list[Artifact]:
        return plan_of(store).missing(store)

    commit_artifact(store, plan.images)
    assert left() == plan.artifacts()[1:]
    build(plan, store)
    assert left() == []


class TestColumns:
    """The plan stores what the losses of the space read, and nothing else."""

    def columns(self, store: Store, loss: dict[str, Any], **sections: Any) -> dict[str, list[str]]:
        plan = plan_of(store, trial=with_trial(loss=loss, **sections))
        return {name: item.spec["columns"] for (name, key), item in plan.targets.items() if key == plan.images.key}

    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            ({"kl": {"weight": {"uniform": [0, 2]}}}, ["logits"]),
            ({"kl": {"weight": 0}, "embedding": {"kind": "align_uniform"}}, ["embedding"]),
            ({"embedding": {"kind": {"choice": ["none", "kdep"]}}}, ["pre_embedding"]),
            ({"kl": {"weight": {"choice": [0, 1]}}, "embedding": {"kind": {"choice": ["cosine", "kdep"]}}},
             ["embedding", "logits", "pre_embedding"]),
            ({"embedding": {"kind": "dkd"}}, ["logits"]),
        ],
    )  # fmt: skip
    def test_are_those_that_the_losses_need(self, store: Store, loss: dict[str, Any], expected: list[str]) -> None:
        assert self.columns(store, loss) == {"cnn": expected, "vit": expected}

    def test_of_one_teacher_do_not_depend_on_the_others_losses(self, store: Store) -> None:
        kind = {"choice": ["cosine", "none"], "when": {"teacher": "vit"}}
        found = self.columns(store, {"kl": {"weight": 1.0}, "embedding": {"kind": kind}})
        assert found == {"cnn": ["logits"], "vit": ["embedding", "logits"]}

    def test_are_none_where_nothing_is_read(self, store: Store) -> None:
        plan = plan_of(store, trial=with_trial(loss={"ce": 1.0}))
        assert (plan.adapt, plan.targets) == ({}, {})

    @pytest.mark.parametrize(("synthetic", "expected"), [({"labels": "teacher"}, "logits"), ({}, None)])
    def test_synthetic_images_may_need_more(
        self, store: Store, synthetic: dict[str, str], expected: str | None
    ) -> None:
        use = {"source": "sd", "ratio": 1, **synthetic}
        found = self.columns(store, {"embedding": {"kind": "cosine"}}, synthetic=use)
        assert found["cnn"] == sorted({"embedding", *([expected] if expected else [])})

    def test_a_teacher_in_the_loop_is_adapted_and_not_cached(self, store: Store) -> None:
        plan = plan_of(store, trial=with_trial(loss={"kl": {"weight": 1.0}, "embedding": {"kind": "at"}}))
        assert set(plan.adapt) == {"cnn", "vit"}
        assert plan.targets == {}
        online = TrialConfig.model_validate(
            {"teacher": "cnn", "student": {"model": "x"}, "loss": {"embedding": {"kind": "at"}}}
        ).resolved()
        assert [(use.artifact.kind, use.artifact.name) for use in plan.uses(online)] == [("adapt", "cnn")]
        refs = data_refs(plan, online)
        assert [teacher.targets for teacher in refs.teachers] == [()]

    def test_of_the_store_are_used_where_they_are_enough(self, store: Store) -> None:
        both = with_trial(loss={"kl": {"weight": 1.0}, "embedding": {"kind": "cosine"}})
        build(plan_of(store, trial=both), store)
        less = plan_of(store, trial=with_trial(loss={"kl": {"weight": 1.0}}))
        assert less.missing(store) == []
        assert less.targets == plan_of(store, trial=both).targets
        more = plan_of(store, trial=with_trial(loss={"kl": {"weight": 1.0}, "embedding": {"kind": "kdep"}}))
        assert {item.kind for item in more.missing(store)} == {"targets"}


class TestEnsembles:
    def test_use_their_members_artifacts_and_have_none(self, store: Store) -> None:
        alone = plan_of(store, trial=with_trial(teacher={"choice": ["cnn", "vit"]}))
        plan = plan_of(store, trial=with_trial(teacher={"choice": ["cnn", "vit", "cnn+vit"]}))
        assert plan.artifacts() == alone.artifacts()
        assert plan_of(store, trial=with_trial(teacher="cnn+vit")).artifacts() == alone.artifacts()
        used = [(use.artifact.kind, use.artifact.name) for use in plan.uses(trial("cnn+vit"))]
        assert used == [("adapt", "cnn"), ("adapt", "vit"), ("targets", "cnn"), ("targets", "vit")]

    @pytest.mark.parametrize("way", ["concatenated", "separate"])
    def test_may_have_a_name(self, store: Store, way: str) -> None:
        both = {"kind": "ensemble", "members": ["vit", "cnn"], "embedding": way}
        plan = plan_of(store, teachers={**TEACHERS, "both": both}, trial=with_trial(teacher="both"))
        assert set(plan.adapt) == {"cnn", "vit"}
        refs = data_refs(plan, trial("both"))
        assert [teacher.adapt for teacher in refs.teachers] == [plan.adapt["vit"].key, plan.adapt["cnn"].key]
        assert refs.is_separate == (way == "separate")
