"""What `sweeper init` chooses: sizes, models and trials that fit the data, the machine and the minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_forecast import made_up, row

from sweeper import architecture, choices, init_space
from sweeper.choices import FEWEST_EPOCHS, FEWEST_TRIALS, FEWEST_VIEWS, MOST_TRIALS, Choices, Teacher, first, fit
from sweeper.forecast import START_S, Forecast
from sweeper.place import Place
from sweeper.teachers import timm
from sweeper.trial import StudentConfig

SPEEDS = {"test_resnet": 0.002, "mobilenetv2_035": 0.01, "resnet10t": 0.02}  # seconds an image
TEACHERS = (Teacher(name="cheap", settings="{}", why=""), Teacher(name="dear", settings="{}", why=""))


def suggested(**changes: object) -> Choices:
    data = {
        "short_side": 200,
        "num_train": 200,
        "class_names": ["cat", "dog"],
        "processor": "CPU",
        "teachers": TEACHERS,
    }
    return first(**{**data, **changes})  # type: ignore[arg-type]


def expected(made: Choices, view_s: float = 0.001, adapt_s: float = 1.0) -> Forecast:
    """A machine of one lane on which everything takes its time in proportion."""
    training = sum(SPEEDS[name] for name in made.students) / len(made.students) * 200 * made.epochs
    final = 0.6 * (made.finalists + choices.NUM_ARMS) * made.seeds * training
    return made_up(
        row("adapt", adapt_s * len(made.teachers)),
        row("targets", view_s * 200 * made.per_image * len(made.teachers)),
        row("search", made.trials * training, samples=made.trials),
        row("finalists", final),
    )


@pytest.mark.parametrize(
    ("short_side", "processor", "size"),
    [(20, "CPU", 32), (50, "CPU", 48), (3000, "CPU", 64), (3000, "GPU", 224), (200, "GPU", 192), (28, "GPU", 32)],
)
def test_images_are_as_large_as_data_and_machine_allow(short_side: int, processor: str, size: int) -> None:
    assert suggested(short_side=short_side, processor=processor).image_size == size


def test_a_small_set_gets_more_views_and_epochs_and_smaller_batches() -> None:
    few, some, many = (suggested(num_train=count) for count in (30, 300, 100_000))
    assert few.per_image > some.per_image > many.per_image == FEWEST_VIEWS
    assert few.epochs > some.epochs > many.epochs == FEWEST_EPOCHS
    assert few.batch_size < some.batch_size < many.batch_size


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (["cat", "dog"], True),
        (["0", "1", "2"], False),
        (["digit_0", "digit_1"], False),
        (["A", "b"], False),
        (["turn left", "turn right"], False),
        (["a", "cat"], True),
    ],
)
def test_characters_and_sides_are_not_mirrored(names: list[str], flips: bool) -> None:
    assert choices.may_flip(names) == flips


@pytest.mark.parametrize("minutes", [5, 10, 30, 240])
def test_the_sweep_takes_the_minutes_that_are_asked_for(minutes: int) -> None:
    made, found = fit(suggested(), expected, 60.0 * minutes)
    assert found.wall_s is not None
    assert found.wall_s <= 60 * minutes * 1.05
    assert made.trials == MOST_TRIALS or found.wall_s > 60 * minutes * 0.7


def test_the_dearest_students_go_first_and_the_epochs_last() -> None:
    most, some, least = (fit(suggested(), expected, 60.0 * minutes)[0] for minutes in (240, 40, 2))
    assert most.students == tuple(SPEEDS)
    assert some.students == ("test_resnet", "mobilenetv2_035")
    assert some.epochs == most.epochs == suggested().epochs
    assert least.students == ("test_resnet",)
    assert (least.trials, least.epochs < most.epochs) == (FEWEST_TRIALS, True)
    assert (most.finalists, most.seeds) == (some.finalists, some.seeds) == (4, 3)
    assert (least.finalists, least.seeds) == choices.FEWEST_FINALISTS


def test_slow_teachers_get_fewer_views_and_the_slowest_go() -> None:
    made, found = fit(suggested(), lambda made: expected(made, view_s=0.05), 600.0)
    assert FEWEST_VIEWS <= made.per_image < suggested().per_image
    assert found.wall["targets"] <= choices.SHARED * 600
    alone, _ = fit(suggested(), lambda made: expected(made, adapt_s=150.0), 600.0)
    assert [teacher.name for teacher in alone.teachers] == ["cheap"]
    assert alone.per_image == suggested().per_image, "the views are not what takes so long"


def test_the_least_that_makes_sense_is_said_to_take_longer() -> None:
    made, found = fit(suggested(), lambda made: expected(made, view_s=1.0), 60.0)
    assert (made.trials, made.epochs, made.per_image) == (FEWEST_TRIALS, FEWEST_EPOCHS, FEWEST_VIEWS)
    assert found.wall_s is not None
    assert found.wall_s > 60 + START_S


def test_every_model_that_may_be_chosen_exists() -> None:
    for processor in choices.STUDENTS:
        for model in choices.STUDENTS[processor]:
            architecture.check(StudentConfig(model=model))
        for _, model in init_space.HUB_TEACHERS[processor]:
            timm.check(timm.Config(model=model))


def test_places_of_unknown_lanes_are_worded() -> None:
    found = made_up(row("search", 3600.0))
    assert "lane" in init_space.about(found)
    assert init_space.about(replace(found, lanes=None)).endswith("an unknown number of lanes")
    assert isinstance(found.place, Place)
