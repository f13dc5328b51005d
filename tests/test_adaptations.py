"""What the adapted teachers can do is said before the search, and one that students left behind is named after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from samples import TRIAL_TREE, commit_artifact, dataset_index, space_of, sweep_config

from sweeper import adaptations
from sweeper.finalists import Candidate
from sweeper.ledger import Charge
from sweeper.plan import Plan, make_plan
from sweeper.store import Record, Store
from sweeper.trial import TrialConfig

REACHED = {"cnn": ("linear_probe", 0.81, 12.5), "vit": ("none", 0.95, 7200.0)}


@pytest.fixture
def taught(store: Store) -> tuple[Plan, Mapping[str, Record]]:
    config = sweep_config(trial={**TRIAL_TREE, "teacher": {"choice": list(REACHED)}})
    plan = make_plan(config, space_of(config), dataset_index(), store)
    records = {}
    for name, item in plan.adapt.items():
        way, accuracy, seconds = REACHED[name]
        charge = Charge(stage="adapt", key=item.key, seconds=seconds, device="NVIDIA Imaginary", units=item.units)
        meta = {"accuracy_val": accuracy, "adapt": way}
        records[item.key] = commit_artifact(store, item, charge=charge, meta=meta)
    return plan, records


def student(trial: int, accuracy: float) -> Candidate:
    config: Any = TrialConfig.model_validate({"student": {"model": "test_resnet"}})
    return Candidate(trial, config, accuracy, 0.1, 3)


def test_each_teacher_says_its_accuracy_its_way_and_its_cost(taught: Any) -> None:
    assert adaptations.told(*taught) == {
        "cnn": "0.810 on validation (linear probe, 12.5 GPU-s)",
        "vit": "0.950 on validation (as it is, 2.00 GPU-h)",
    }


def test_a_teacher_that_the_best_student_left_behind_is_named(taught: Any) -> None:
    (line,) = adaptations.weaker(*taught, [student(0, 0.7), student(4, 0.93), student(5, 0.9)])
    assert line.startswith("teacher cnn (0.810) is worse than the best student (0.930, trial 4), both on validation: ")
    assert len(adaptations.weaker(*taught, [student(0, 0.96)])) == 2


@pytest.mark.parametrize("accuracies", [(), (0.7,), (0.81,)])
def test_teachers_that_are_as_good_as_their_students_are_not_blamed(taught: Any, accuracies: tuple[float, ...]) -> None:
    students = [student(number, accuracy) for number, accuracy in enumerate(accuracies)]
    assert adaptations.weaker(*taught, students) == []
    assert set(adaptations.facts(*taught, students)) == {"teachers"}
