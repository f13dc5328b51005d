"""`sweeper plan`: what a space would build and train, and what that should cost; builds nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sweeper import cluster_file, place
from sweeper.calibration import Calibration
from sweeper.console import Console
from sweeper.forecast import Forecast, forecast
from sweeper.layout import fitted
from sweeper.pairs import check_models
from sweeper.place import Place
from sweeper.plan_table import plan_table
from sweeper.prepared import Options, Prepared, header, prepare
from sweeper.spacefile import SpaceFile

PLAN_S = 15.0  # in which a plan times models that were not timed yet
LEAST_S, RUN_SHARE, RUN_S = 0.5, 0.02, 6.0  # a run: so much of its own device time, no less and no more than these


def show(
    space: SpaceFile,
    options: Options,
    console: Console,
    *,
    cluster: Path | None = None,
    price: float | None = None,
    calibrate: bool | None = None,
) -> Forecast:
    """Print the table.

    Args:
        cluster: a file of Ray's cluster launcher; None for this machine.
        price: dollars a device-hour.
        calibrate: time all models on this device (where that is the one that is asked about), or none; None for those
            that were not timed yet.

    Raises:
        InputError: the space, its data or the cluster file is wrong.
    """
    prepared = prepare(space, options)
    check_models(space)
    config = space.config
    if cluster is None:
        where = place.here(price=price)
    else:
        where = place.on_cluster(cluster_file.read(cluster), config.resources, price)
    calibration = None if calibrate is False else _calibration(prepared, where)
    found = _forecast(prepared, where, calibration, lambda total: PLAN_S, again=calibrate is True)
    console.header(header(prepared))
    console.message()
    console.show(fitted(plan_table(found), console.width))
    return found


def for_run(prepared: Prepared, options: Options) -> Forecast:
    """What a run says of itself before it starts; it measures for a moment, and a rehearsal not at all."""
    where = place.here(is_local=options.address is None)

    def within(total_s: float) -> float:
        return min(RUN_S, max(LEAST_S, RUN_SHARE * total_s)) if total_s > 0 and not options.is_passing else 0.0

    return _forecast(prepared, where, _calibration(prepared, where), within)


def _calibration(prepared: Prepared, where: Place) -> Calibration | None:
    """None where the device is not here, or not known to be the one that the lanes will have."""
    lanes = where.lanes(prepared.plan.config)
    return Calibration(where.slot, lanes) if where.slot.is_here and lanes is not None else None


def _forecast(
    prepared: Prepared,
    where: Place,
    calibration: Calibration | None,
    within: Callable[[float], float],
    *,
    again: bool = False,
) -> Forecast:
    plan, space, store = prepared.plan, prepared.space.space, prepared.store
    return forecast(plan, space, store, where, calibration=calibration, within=within, again=again)
