"""Hours of unlike devices in one measure: by price, else by peak, as hours of the device that worked most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sweeper import devices
from sweeper.ledger import ArtifactUse, Charge
from sweeper.spent import Normaliser

A10G, L4 = "NVIDIA A10G", "NVIDIA L4"


def charge(key: str, seconds: float, device: str) -> Charge:
    return Charge(stage="targets", key=key, seconds=seconds, device=device, units=1)


def normaliser(prices: dict[str, float], *found: Charge) -> Normaliser:
    records: Any = {one.key: SimpleNamespace(charge=one) for one in found} | {"images": SimpleNamespace(charge=None)}
    return Normaliser(found, prices, records)


USES = {"both": ArtifactUse("targets", 3600, 0.5)}


def test_one_kind_of_device_needs_no_other_measure() -> None:
    alike = normaliser({}, charge("a", 10, L4), charge("both", 20, L4))
    assert alike.columns([(L4, 10)], {}) == {}


def test_by_price_where_each_device_has_one() -> None:
    mixed = normaliser({"l4": 0.8, "A10G": 1.0}, charge("a", 9000, A10G), charge("both", 3600, f"{A10G} + {L4}"))
    assert mixed.columns([(A10G, 3600)], {}) == {"gpu_hours_normalized": 1.0}
    assert mixed.columns([(L4, 3600), (A10G, 3600)], {})["gpu_hours_normalized"] == pytest.approx(0.9)
    assert mixed.columns([(L4, 0)], USES)["gpu_hours_normalized"] == pytest.approx(0.5 * 0.9), "a mean of both"


@pytest.mark.parametrize("prices", [{}, {"L4": 0.8}])
def test_by_peak_where_one_has_none(prices: dict[str, float]) -> None:
    mixed = normaliser(prices, charge("a", 10, L4), charge("both", 9000, A10G))
    ratio = devices.PEAK_FLOPS["L4"] / devices.PEAK_FLOPS["A10G"]
    assert mixed.columns([(L4, 3600)], {})["gpu_hours_normalized"] == pytest.approx(ratio)


def test_a_price_is_found_by_a_word_of_the_name() -> None:
    assert devices.price("NVIDIA L40S", {"L4": 0.8}) is None
    assert devices.price("NVIDIA L4", {"L4": 0.8}) == 0.8
    assert devices.price("cpu", {"CPU": 0.02}) == 0.02
