"""What a sweep should cost before it starts: device-seconds of what is missing, of the search and of the finalists.

Where the store knows how long this teacher or generator took, that is scaled; else models are timed or counted
(`costs`). What can not be told, such as a pipeline that is not on disk yet, is called unknown instead of being guessed.
Nothing is built and no weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sweeper import place as places
from sweeper import registry, sizes
from sweeper.calibration import Calibration
from sweeper.config import SweepConfig
from sweeper.costs import PASSING, PROBE_S, Costs
from sweeper.ledger import SECONDS_PER_HOUR
from sweeper.past import Past
from sweeper.place import Place
from sweeper.plan import Artifact, Plan
from sweeper.space import Space
from sweeper.store import Store
from sweeper.tables import STAGE_TITLES, duration
from sweeper.trial import most_epochs
from sweeper.wording import HARD_SPACE

START_S = 15.0  # of the wall clock, on two cores: Ray and the lanes
PASS_S = 10.0  # and each stage's workers
# Rows of `front: anytime` end anywhere between a recipe's first epochs and its last. Their retrainings and those of the
# arms trained 0.42, 0.61 and 0.71 of all epochs in three runs of the embedded default.
ANYTIME_SHARE = 0.6
# Rows that a worker of a stage has at least (twice a batch of `synthesize` and of `targets`).
LEAST_ROWS = {"synthetic": 128, "targets": 256}
UNITS = {"images": "images", "adapt": "images", "synthetic": "images", "targets": "views"}
PASSING_NOTE = f", if {PASSING:.0%} pass the filter"
CACHED, BEFORE, TIMED, COUNTED, UNKNOWN = "cached", "measured before", "measured", "counted", "not known"
NO_DEVICE = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A part of a sweep.

    Attributes:
        kind: images, adapt, synthetic, targets, search or finalists.
        samples: how many `unit`s it is made of.
        bytes: in the store, roughly; None where nobody knows, 0 for what the store does not hold.
        seconds: of devices; None where nobody knows.
        workers: that share it. start_s: until they work, on the clock.
        basis: where the seconds come from.
        note: what they assume besides.
    """

    kind: str
    name: str
    samples: int | None
    unit: str
    bytes: int | None
    seconds: float | None
    workers: int = 1
    start_s: float = 0.0
    basis: str = COUNTED
    note: str = ""

    @property
    def wall_s(self) -> float | None:
        """On the clock."""
        return None if self.seconds is None else self.start_s + self.seconds / self.workers


@dataclass(frozen=True)
class Forecast:
    """The parts of a sweep in the order of the work.

    Attributes:
        lanes: how many trainings run at a time, where that is known.
    """

    rows: tuple[Row, ...]
    place: Place
    lanes: int | None

    @property
    def seconds(self) -> dict[str, float]:
        """Device-seconds by stage, of those that take any."""
        found: dict[str, float] = {}
        for row in self.rows:
            if row.seconds is not None and row.basis not in (CACHED, NO_DEVICE):
                found[row.kind] = found.get(row.kind, 0.0) + row.seconds
        return found

    @property
    def wall(self) -> dict[str, float]:
        """Seconds on the clock by stage."""
        found: dict[str, float] = {}
        for row in self.rows:
            if row.basis not in (CACHED, UNKNOWN):
                found[row.kind] = found.get(row.kind, 0.0) + (row.wall_s or 0.0)
        return found

    @property
    def measured(self) -> tuple[str, ...]:
        """Stages that the store knew."""
        return tuple(dict.fromkeys(row.kind for row in self.rows if row.basis == BEFORE))

    @property
    def unknown(self) -> tuple[str, ...]:
        """What is left out, for people."""
        left = [row for row in self.rows if row.basis == UNKNOWN]
        names = [f"{STAGE_TITLES.get(r.kind, r.kind)} of {r.name}" if r.kind in UNITS else "training" for r in left]
        return tuple(dict.fromkeys(names))

    @property
    def total(self) -> float:
        return math.fsum(self.seconds.values())

    @property
    def wall_s(self) -> float | None:
        """On the clock, with the start of Ray and the lanes; None where the lanes are not known."""
        return None if self.lanes is None else START_S + math.fsum(self.wall.values())

    def dollars(self, seconds: float | None) -> float | None:
        """Of so much device time; None without a price."""
        if self.place.price is None or seconds is None:
            return None
        return self.place.price * seconds / SECONDS_PER_HOUR

    @property
    def total_dollars(self) -> float | None:
        """Of all device time, and of a head that is paid besides."""
        head = (self.place.head_price or 0.0) * (self.wall_s or 0.0) / SECONDS_PER_HOUR
        found = self.dollars(self.total)
        return None if found is None else found + head

    def line(self) -> str:
        """For the header."""
        parts = ", ".join(f"{STAGE_TITLES.get(name, name)} {_time(s)}" for name, s in self.seconds.items() if s > 0)
        said = f"{_time(self.total)} of device time: {parts or 'nothing'}"
        if self.wall_s is not None:
            said += f"; about {_time(self.wall_s)} on {self.lanes} lane{'s' if self.lanes != 1 else ''}"
        said += f", {self.basis}"
        if self.measured:
            said += f", {' and '.join(STAGE_TITLES.get(name, name) for name in self.measured)} as measured before"
        if self.unknown:
            said += f"; not known: {', '.join(self.unknown)}"
        return f"  forecast   {said}"

    @property
    def basis(self) -> str:
        """Where the device time of models comes from, for people."""
        bases = {row.basis for row in self.rows}
        said = ["timed on this device"] if TIMED in bases else []
        return " or ".join([*said, *([f"counted at {self.place.slot.basis}"] if COUNTED in bases or not said else [])])


def _time(seconds: float) -> str:
    """A duration that no line break tears."""
    return duration(seconds).replace(" ", HARD_SPACE)


def forecast(
    plan: Plan,
    space: Space,
    store: Store,
    place: Place | None = None,
    *,
    calibration: Calibration | None = None,
    within: Callable[[float], float] | None = None,
    again: bool = False,
) -> Forecast:
    """What the missing artifacts, the search and the finalists should take.

    Args:
        place: where the sweep would run; None for this machine.
        calibration: what was timed on this device; None to count operations only.
        within: from the device-seconds that are known so far to those on the clock in which models are timed that were
            not yet; again: those that were, too.
    """
    place = place or places.here()
    lanes = place.lanes(plan.config)
    missing = plan.missing(store)
    worked = [item for item in missing if item.kind != "images"]  # decoding is nobody's device time
    past = Past(plan, store, place.slot.device, PROBE_S)
    before = {item.key: past.seconds(item) for item in worked}
    costs = Costs(plan, space, place.slot, calibration)

    def told() -> Forecast:
        rows = list(_artifacts(plan, missing, costs, before, place))
        return Forecast((*rows, *_trainings(plan.config, space, costs, rows, place)), place, lanes)

    found = told()
    if calibration is None or within is None or (within_s := within(found.total)) <= 0:
        return found
    trainings_s = found.seconds.get("search", 0.0) + found.seconds.get("finalists", 0.0)
    costs.calibrate([item for item in worked if before[item.key] is None], trainings_s, within_s, again=again)
    return told()


def _artifacts(
    plan: Plan, missing: list[Artifact], costs: Costs, before: dict[str, float | None], place: Place
) -> Iterator[Row]:
    """One row for each kind and name; of a name whose parts are partly there, what is missing."""
    absent = {item.key for item in missing}
    size_of = sizes.bytes_of(plan)
    named: dict[tuple[str, str], list[Artifact]] = {}
    for item in plan.artifacts():
        named.setdefault((item.kind, item.name), []).append(item)
    num_teachers = max(1, sum(item.kind == "adapt" for item in missing))
    begun: set[str] = set()
    for (kind, name), items in named.items():
        new = [item for item in items if item.key in absent]
        images = sum(item.units for item in new) // (plan.config.views.per_image if kind == "targets" else 1)
        most = num_teachers if kind == "adapt" else max(1, math.ceil(images / LEAST_ROWS.get(kind, 1)))
        known = [0.0 if kind == "images" else before[item.key] for item in new]
        seconds = [costs.artifact(i) if b is None else b for i, b in zip(new, known, strict=True)]
        found = [size_of(item) for item in new]
        passes = int(kind not in begun) if kind in ("adapt", "targets") else len(new)  # those have one for all names
        begun |= {kind} if new else set()
        yield Row(
            kind=kind,
            name=name,
            samples=sum(item.units for item in new or items),
            unit=UNITS[kind],
            bytes=None if None in found else sum(value or 0 for value in found),
            seconds=None if None in seconds else math.fsum(value or 0.0 for value in seconds),
            workers=min(place.num_devices, most),
            start_s=PASS_S * passes if new else 0.0,
            basis=(basis := _basis(new, known, seconds, costs)),
            note=PASSING_NOTE if basis in (TIMED, COUNTED) and costs.is_filtered(new[0]) else "",
        )


def _basis(new: list[Artifact], known: list[float | None], seconds: list[float | None], costs: Costs) -> str:
    if not new:
        return CACHED
    if new[0].kind == "images":
        return NO_DEVICE
    if None in seconds:
        return UNKNOWN
    if None not in known:
        return BEFORE
    return TIMED if costs.is_measured(new[0]) else COUNTED


def _trainings(config: SweepConfig, space: Space, costs: Costs, rows: list[Row], place: Place) -> Iterator[Row]:
    """The search and the finalists."""
    lanes = place.lanes(config) or 1
    final = config.finalists
    num_arms = 2 + bool(config.pools) if final.ablate and config.teachers else 0  # one more is a finalist, as a rule
    num_final = (final.count + num_arms) * final.seeds
    training = costs.training()
    search, finalists = None, None
    if training is not None:
        shared = math.fsum(row.seconds or 0.0 for row in rows)
        before, task = (seconds * place.crowding(config) for seconds in training)
        search = _search_seconds(config, space, before, task, shared, lanes)
        share = ANYTIME_SHARE if config.search.front == "anytime" else 1.0
        finalists = num_final * (before + task * share)
    basis = UNKNOWN if training is None else TIMED if costs.are_trainings_measured else COUNTED
    for kind, count, seconds in (("search", config.search.trials, search), ("finalists", num_final, finalists)):
        seeds = f"{final.seeds} seed{'s' if final.seeds > 1 else ''}"
        unit, name = ("trials", config.search.sampler) if kind == "search" else ("trainings", seeds)
        yield Row(
            kind=kind,
            name=name,
            samples=count,
            unit=unit,
            bytes=0,
            seconds=seconds,
            workers=min(lanes, count or lanes),
            basis=basis,
        )


def _search_seconds(config: SweepConfig, space: Space, before: float, task: float, shared: float, lanes: int) -> float:
    """Device-seconds of the search, its scheduler's early stops expected.

    Args:
        before, task: mean seconds of a pre-training, which no scheduler stops, and of a whole training on the task.
        shared: seconds of the artifacts, in a budget of GPU-hours. lanes: filled while a budget on the clock lasts.
    """
    scheduler: Any = config.search.scheduler
    share: Callable[..., float] | None = getattr(registry.load("schedulers", scheduler.kind), "expected_share", None)
    max_epochs = most_epochs(space.corners())
    budgets = []
    if (trials := config.search.trials) is not None:
        budgets.append(trials * (before + task * (share(scheduler, max_epochs, trials) if share else 1.0)))
    budgets += [max(0.0, config.search.gpu_hours * 3600 - shared)] if config.search.gpu_hours is not None else []
    budgets += [config.search.wall_hours * 3600 * lanes] if config.search.wall_hours is not None else []
    return min(budgets)
