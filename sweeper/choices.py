"""What suits a dataset and a machine: size, views, models, recipe and number of trials for a first space file.

Rules of thumb that a forecast keeps within the minutes that are asked for. Nothing here is measured to be best: they
make a first front soon, and every one of them is a line of the file, to be changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sweeper.forecast import START_S, Forecast

SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
LARGEST = {"CPU": 64, "GPU": 224}  # pixels: a training's time goes with their square
STUDENTS = {
    "CPU": ("test_resnet", "mobilenetv2_035", "resnet10t"),
    "GPU": ("mobilenetv3_small_100", "mobilenetv2_050", "resnet10t", "resnet18"),
}
STEPS = {"CPU": 400, "GPU": 2_000}  # of a whole training, roughly
FEWEST_EPOCHS, MOST_EPOCHS = 10, 60
IDEAL_VIEWS = 6_000  # of all training images together; a small set gets more of each image
FEWEST_VIEWS, MOST_VIEWS = 2, 32
FEWEST_TRIALS, MOST_TRIALS = 16, 120
FEWEST_FINALISTS = (2, 2)  # rows and seeds, where time is short
NUM_ARMS = 2  # that the ablation trains with the finalists
SHARED = 0.3  # of the minutes, at most, for what all trials share
LEAST_SHARED = 0.1  # of them, for the teachers' pass over the views, whatever fitting the teachers takes
CHARACTER = re.compile(r"((digit|letter|char|character|number)[ _-]?)?[0-9A-Za-z]", re.IGNORECASE)
TURNED = re.compile(r"(.*[ _-])?(left|right)([ _-].*)?|[bdpq]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher of the file: its name there, its settings as YAML's flow form has them, and why it is there."""

    name: str
    settings: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the file will say."""

    image_size: int
    flip: bool
    per_image: int
    teachers: tuple[Teacher, ...]
    students: tuple[str, ...]
    epochs: int
    batch_size: int
    trials: int = 24
    finalists: int = 4
    seeds: int = 3


Expect = Callable[[Choices], Forecast]


def first(
    *, short_side: int, num_train: int, class_names: Sequence[str], processor: str, teachers: tuple[Teacher, ...]
) -> Choices:
    """What the data and the machine suggest, whatever it costs.

    Args:
        short_side: the median image's, in pixels.
        processor: `CPU` or `GPU`.
        teachers: cheapest first.
    """
    size = max((size for size in SIZES if size <= min(short_side, LARGEST[processor])), default=SIZES[0])
    batch = next(batch for batch, most in ((16, 150), (32, 600), (64, 20_000), (128, num_train)) if num_train <= most)
    epochs = STEPS[processor] * batch // num_train
    return Choices(
        image_size=size,
        flip=may_flip(class_names),
        per_image=_within(IDEAL_VIEWS // num_train, FEWEST_VIEWS, MOST_VIEWS),
        teachers=teachers,
        students=STUDENTS[processor],
        epochs=_within(epochs, FEWEST_EPOCHS, MOST_EPOCHS),
        batch_size=batch,
    )


def may_flip(class_names: Sequence[str]) -> bool:
    """Whether a mirrored image is still one of its class: not where classes are characters, or left and right."""
    return not any(TURNED.fullmatch(name) for name in class_names) and not all(map(CHARACTER.fullmatch, class_names))


def fit(wanted: Choices, expect: Expect, budget_s: float) -> tuple[Choices, Forecast]:
    """The choices cut to so many seconds on the clock, and what they should take.

    First the views and the teachers, which all trials share, then the dearest students, then the finalists, and the
    epochs last; what is left over decides the number of trials. The least may still take longer: the forecast says so.

    Args:
        expect: asks the forecast about choices.
    """
    made = _cheaper_teachers(wanted, expect(wanted), budget_s)
    alone = {name: expect(replace(made, students=(name,))) for name in made.students}
    by_cost = sorted(made.students, key=lambda name: alone[name].wall.get("search", 0.0))
    left = budget_s - START_S - _shared_s(alone[by_cost[0]])
    for number in range(len(by_cost), 0, -1):
        kept = by_cost[:number]
        trial = sum(alone[name].wall.get("search", 0.0) for name in kept) / number / made.trials
        finals = sum(alone[name].wall.get("finalists", 0.0) for name in kept) / number
        count, seeds = made.finalists, made.seeds
        if number == 1 and finals + FEWEST_TRIALS * trial > left:
            count, seeds = FEWEST_FINALISTS
            finals *= (count + NUM_ARMS) * seeds / ((made.finalists + NUM_ARMS) * made.seeds)
        trials = int((left - finals) / trial) if trial > 0 else MOST_TRIALS
        if trials >= FEWEST_TRIALS:
            break
    epochs = made.epochs
    if trials < FEWEST_TRIALS:
        epochs = int(epochs * max(left, 0.0) / (FEWEST_TRIALS * trial + finals))
    made = replace(
        made,
        students=tuple(name for name in made.students if name in kept),
        epochs=_within(epochs, min(FEWEST_EPOCHS, made.epochs), made.epochs),
        trials=_within(trials, FEWEST_TRIALS, MOST_TRIALS),
        finalists=count,
        seeds=seeds,
    )
    return made, expect(made)


def _cheaper_teachers(wanted: Choices, found: Forecast, budget_s: float) -> Choices:
    """Fewer views where targets take too long, and the cheapest teacher alone where even that does not do."""
    made, adapt, targets = wanted, found.wall.get("adapt", 0.0), found.wall.get("targets", 0.0)
    room = max(SHARED * budget_s - _shared_s(found) + targets, LEAST_SHARED * budget_s)
    if targets > room:
        made = replace(made, per_image=_within(int(made.per_image * room / targets), FEWEST_VIEWS, made.per_image))
    if adapt > SHARED * budget_s:
        made = replace(made, teachers=made.teachers[:1])
    return made


def _shared_s(found: Forecast) -> float:
    return sum(seconds for stage, seconds in found.wall.items() if stage not in ("search", "finalists"))


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))
