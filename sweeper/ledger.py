"""Device-seconds by stage, and the two ways to charge them to a row of the table.

A row's `gpu_hours` is what that row alone would have cost from nothing: it pays for an artifact as far as it used it.
`gpu_hours_amortized` splits what was really spent: the whole cost of an artifact, over the trials that used it, in
proportion to use. Seconds come in and hours go out, so that nothing is rounded twice.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

if TYPE_CHECKING:
    import torch

Stage = Literal["adapt", "targets", "synthetic", "pretrain", "train", "images"]
SHARED_STAGES = ("adapt", "targets", "synthetic")
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One measured piece of work.

    Attributes:
        key: artifact key, or trial id for `train` and for its part `pretrain`, which is not counted in `train` again.
        seconds: device-seconds, which are synchronised seconds times the devices that were held.
        device: as `device_name` gives it.
        units: what was worked on: rows, images or steps.
    """

    stage: Stage
    key: str
    seconds: float
    device: str
    units: int


def training_charges(
    key: str, seconds: float, device: str, epochs: int, *, pretrain_seconds: float = 0.0, pretrain_epochs: int = 0
) -> list[Charge]:
    """A training as charges whose sum is its `seconds`: `train`, and before it `pretrain` where it began with that."""
    rest = Charge(stage="train", key=key, seconds=seconds - pretrain_seconds, device=device, units=epochs)
    if not pretrain_seconds:
        return [rest]
    first = Charge(stage="pretrain", key=key, seconds=pretrain_seconds, device=device, units=pretrain_epochs)
    return [first, rest]


class DeviceTimer:
    """Seconds between entry and exit, the device synchronised at both ends: kernels are queued, not run, when called.

    Several `with` blocks on one timer add up, and a block that raises still counts: the device was held.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._begun = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        _synchronize(self._device)
        self._begun = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _synchronize(self._device)
        finally:
            self.seconds += time.perf_counter() - self._begun


def device_name(device: torch.device | str) -> str:
    """What the `device` column says: `NVIDIA H100 80GB HBM3`, `cpu`, or the type of any other device."""
    kind = _device_type(device)
    if kind != "cuda":
        return kind
    import torch

    return torch.cuda.get_device_name(device)


class ArtifactUse(NamedTuple):
    """How a trial used an artifact: stage, device-seconds of the whole, and the share of it in [0, 1] that was used.

    A trial with ratio 0.5 of a set that was generated for ratio 2 used a quarter of it.
    """

    stage: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Cost:
    """What one row alone would have cost, in device-seconds."""

    adapt: float = 0.0
    targets: float = 0.0
    synthetic: float = 0.0
    train: float = 0.0

    @classmethod
    def alone(cls, train_seconds: float, artifacts: Mapping[str, ArtifactUse]) -> Cost:
        """Its own training, and of each artifact the share that it used.

        Args:
            train_seconds: device-seconds of the trial's own training.
            artifacts: use by artifact key.

        Raises:
            ValueError: a stage without a column, a share outside [0, 1], seconds that are negative or not finite.
        """
        _check(train_seconds, artifacts)
        parts: dict[str, list[float]] = {stage: [] for stage in SHARED_STAGES}
        for use in artifacts.values():
            parts[use.stage].append(use.seconds * use.share)
        return cls(train=train_seconds, **{stage: math.fsum(seconds) for stage, seconds in parts.items()})

    @property
    def total(self) -> float:
        return self.adapt + self.targets + self.synthetic + self.train

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            adapt=self.adapt + other.adapt,
            targets=self.targets + other.targets,
            synthetic=self.synthetic + other.synthetic,
            train=self.train + other.train,
        )

    def as_hours(self) -> dict[str, float]:
        """Columns of `pareto.*` in device-hours; `gpu_hours` is the sum of the four others as they stand here."""
        parts = {f"gpu_hours_{stage}": getattr(self, stage) / SECONDS_PER_HOUR for stage in (*SHARED_STAGES, "train")}
        return {"gpu_hours": sum(parts.values()), **parts}


def amortize(rows: Sequence[tuple[float, Mapping[str, ArtifactUse]]]) -> list[float]:
    """The `gpu_hours_amortized` of every row, in device-hours.

    The sum over the rows is all the time that training took plus the whole cost of every artifact that any row used:
    nothing is charged twice, nothing is lost. An artifact that no row used (every share 0) is charged to nobody.

    Args:
        rows: for each trial its training in device-seconds and its use by artifact key. Give every trial of the search,
            stopped and failed ones too, or their part falls on the others.

    Raises:
        ValueError: as `Cost.alone`, or two rows that differ about an artifact's stage or cost.
    """
    known: dict[str, tuple[str, float]] = {}
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for train_seconds, artifacts in rows:
        _check(train_seconds, artifacts)
        for key, use in artifacts.items():
            if known.setdefault(key, (use.stage, use.seconds)) != (use.stage, use.seconds):
                raise ValueError(
                    f"artifact {key}: one row says {known[key]}, another {(use.stage, use.seconds)} (stage, seconds)"
                )
            shares[key].append(use.share)
    used = {key: math.fsum(values) for key, values in shares.items()}
    return [
        math.fsum(
            [train_seconds, *(use.seconds * (use.share / used[key]) for key, use in artifacts.items() if use.share)]
        )
        / SECONDS_PER_HOUR
        for train_seconds, artifacts in rows
    ]


def _check(train_seconds: float, artifacts: Mapping[str, ArtifactUse]) -> None:
    if not (math.isfinite(train_seconds) and train_seconds >= 0):
        raise ValueError(f"train: {train_seconds!r} device-seconds; must be finite and at least 0")
    for key, use in artifacts.items():
        if use.stage not in SHARED_STAGES:
            raise ValueError(f"artifact {key}: stage {use.stage!r} has no column; allowed: {', '.join(SHARED_STAGES)}")
        if not (math.isfinite(use.seconds) and use.seconds >= 0):
            raise ValueError(f"artifact {key}: {use.seconds!r} device-seconds; must be finite and at least 0")
        if not 0 <= use.share <= 1:
            raise ValueError(f"artifact {key}: share {use.share!r}; must be in [0, 1]")


def _device_type(device: torch.device | str) -> str:
    return str(device).partition(":")[0]


def _synchronize(device: torch.device | str) -> None:
    if _device_type(device) != "cpu":
        import torch

        torch.accelerator.synchronize(device)
