"""Every charge of a run, and device-hours of unlike devices in one measure.

An hour of one GPU is not an hour of another. Where a run used several kinds of devices, each hour counts by what its
device costs (`resources.prices`), or by its peak in `devices.PEAK_FLOPS`, as so many hours of the one that worked most.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeper import devices, finalists
from sweeper.ledger import SECONDS_PER_HOUR, ArtifactUse, Charge, training_charges
from sweeper.plan import charges
from sweeper.trial import TrialConfig

if TYPE_CHECKING:
    from sweeper.harvest import Final
    from sweeper.store import Record
    from sweeper.study import Study

SEVERAL = " + "  # between the names of devices that made one artifact


def all_charges(records: Mapping[str, Record], book: Study, finals: Iterable[Final], device: str) -> Iterator[Charge]:
    """Artifacts, one training a trial of the search, and each retraining once: equal entries share theirs.

    Args:
        device: of trainings that do not say theirs.
    """
    yield from charges(records.values())
    for trial in book.trials():
        config, outcome = TrialConfig.model_validate(trial.user_attrs["config"]), trial.user_attrs["outcome"]
        yield from _training(f"trial-{trial.number:05d}", config, outcome["cost"]["train"], outcome, device)
    seen = set()
    for final in finals:
        for seed in final.seeds:
            key = finalists.job_name(final.entry.config, seed, final.entry.epochs)
            outcome = final.outcomes.get(key)
            assert outcome is not None
            if key not in seen:
                seen.add(key)
                yield from _training(key, final.entry.config, outcome["train_seconds"], outcome, device)


def _training(key: str, config: TrialConfig, seconds: float, outcome: Mapping[str, Any], device: str) -> list[Charge]:
    return training_charges(
        key,
        seconds,
        outcome.get("device") or device,
        outcome["epochs"],
        pretrain_seconds=finalists.pretrain_seconds(outcome),
        pretrain_epochs=config.pretrain.train.epochs,
    )


class Normaliser:
    """What a second of each device of a run is worth.

    Args:
        found: all charges of the run.
        prices: dollars an hour, by a word of the device's name; they count where each device has one.
    """

    def __init__(self, found: Sequence[Charge], prices: Mapping[str, float], records: Mapping[str, Record]) -> None:
        self.devices_of = {key: record.charge.device for key, record in records.items() if record.charge}
        seconds: defaultdict[str, float] = defaultdict(float)
        for charge in found:
            for name in charge.device.split(SEVERAL):
                seconds[name] += charge.seconds
        worth = {name: devices.price(name, prices) for name in seconds}
        if None in worth.values():
            worth = {name: devices.slot(name, is_here=False).flops for name in seconds}
        most = max(seconds, key=lambda name: seconds[name], default="")
        self.weights = {name: (value or 0.0) / (worth[most] or 1.0) for name, value in worth.items()}

    def columns(self, trainings: Sequence[tuple[str, float]], uses: Mapping[str, ArtifactUse]) -> dict[str, float]:
        """`gpu_hours_normalized` of a row; nothing where a run had one kind of device.

        Args:
            trainings: device and device-seconds of the row's training, of several their mean counts.
        """
        if len(self.weights) < 2:
            return {}
        trained = math.fsum(self._weight(device) * seconds for device, seconds in trainings) / len(trainings)
        made = (self._weight(self.devices_of[key]) * use.seconds * use.share for key, use in uses.items())
        return {"gpu_hours_normalized": math.fsum([trained, *made]) / SECONDS_PER_HOUR}

    def _weight(self, device: str) -> float:
        """Of an artifact that several devices made, their mean."""
        names = device.split(SEVERAL)
        return math.fsum(self.weights[name] for name in names) / len(names)
