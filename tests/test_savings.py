"""What a row saves against pre-training and fine-tuning: the formula, the column, and where nobody can say."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError
from samples import dataset_index, space_of, sweep_config

from sweeper.config import PretrainedCost
from sweeper.ledger import Cost
from sweeper.plan import make_plan
from sweeper.savings import Savings, Training
from sweeper.store import Store
from sweeper.trial import TrialConfig

HOUR = 3600.0


def training(init: str = "random", *, model: str = "test_resnet", hours: float = 1.0, **settings: object) -> Training:
    given = {"student": {"model": model, "init": init}, "train": {"epochs": 10, "epoch_size": 100}, **settings}
    return Training(
        config=TrialConfig.model_validate(given),
        epochs=10,
        task_seconds=hours * HOUR,
        cost=Cost(adapt=0.0, targets=0.0, synthetic=0.0, train=hours * HOUR),
        accuracy_val=0.5,
    )


def savings(cost: dict[str, float] | None, *trials: Training) -> Savings:
    config = sweep_config(pretrained={} if cost is None else {"test_resnet": cost})
    return Savings(make_plan(config, space_of(config), dataset_index(), Store("unused")), trials)


def test_a_row_is_compared_with_the_weights_and_the_best_fine_tuning_of_its_student() -> None:
    tuned = training("pretrained", hours=2.0)
    found = savings({"gpu_hours": 18.0}, tuned, training(hours=0.5)).columns(training(hours=5.0))
    assert found == {"gpu_hours_init": 0.0, "saving": pytest.approx(1 - 5 / 20)}


def test_the_fine_tuned_row_pays_for_its_weights_and_saves_nothing() -> None:
    tuned = training("pretrained", hours=2.0)
    found = savings({"gpu_hours": 18.0}, tuned).columns(tuned)
    assert found == {"gpu_hours_init": 18.0, "saving": pytest.approx(0.0)}


def test_weights_given_as_images_and_epochs_cost_what_this_student_would_take_here() -> None:
    tuned = training("pretrained", hours=1.0)  # 10 epochs of 100 images in an hour
    found = savings({"images": 50_000, "epochs": 2}, tuned).columns(tuned)
    assert found["gpu_hours_init"] == pytest.approx(100.0)


def test_without_a_fine_tuned_trial_or_a_known_cost_nothing_is_claimed() -> None:
    assert math.isnan(savings({"gpu_hours": 18.0}).columns(training())["saving"])
    other = savings({"gpu_hours": 18.0}, training("pretrained", model="test_vit"))
    assert math.isnan(other.columns(training(model="test_vit"))["saving"])
    assert math.isnan(other.columns(training("pretrained", model="test_vit"))["gpu_hours_init"])


def test_a_space_without_the_section_has_no_such_columns() -> None:
    assert savings(None, training("pretrained")).columns(training()) == {}


@pytest.mark.parametrize("given", [{}, {"images": 5}, {"epochs": 2}, {"gpu_hours": 1, "images": 5, "epochs": 2}])
def test_a_cost_is_given_in_one_way(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="either `gpu_hours`, or both"):
        PretrainedCost.model_validate(given)
