"""Forecast and fact side by side: which is kept, what is compared, and what an earlier session did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_forecast import keep, made_up, planned, row, sweep

from sweeper import forecast, reckoning
from sweeper.ledger import Charge
from sweeper.plan import Artifact
from sweeper.reckoning import Clock
from sweeper.results import RunFolder
from sweeper.store import Store


def charge(stage: Any, key: str, seconds: float) -> Charge:
    return Charge(stage=stage, key=key, seconds=seconds, device="cpu", units=1)


def expected() -> forecast.Forecast:
    targets = row("targets", 30.0, name="cnn", basis=forecast.COUNTED)
    return made_up(row("adapt", 0.0, basis=forecast.CACHED), targets, row("search", 200.0), row("finalists", 50.0))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "t" / "0123456789")


def missing(store: Store) -> list[Artifact]:
    plan = planned(*sweep(), store)
    keep(store, plan.adapt["cnn"], 3.0)
    return plan.missing(store)


def write_ledger(folder: RunFolder, items: list[Artifact]) -> None:
    (targets,) = [item for item in items if item.kind == "targets"]
    trainings = [charge("train", "trial-00000", 100.0), charge("pretrain", "trial-00001", 60.0)]
    trainings += [charge("train", "trial-00001", 90.0), charge("train", "0123abcd", 40.0)]
    folder.write_ledger([charge("adapt", "known", 3.0), charge("targets", targets.key, 60.0), *trainings])


def test_a_run_is_compared_with_the_forecast_of_its_beginning(folder: RunFolder, store: Store) -> None:
    items = missing(store)
    assert reckoning.begin(folder, expected(), items)
    assert not reckoning.begin(folder, made_up(row("search", 1.0)), [])  # it goes on: the first one stays
    write_ledger(folder, items)
    clock = Clock()
    with clock.around("search"):
        pass
    table = reckoning.end(folder, clock, is_whole=True)
    assert table is not None
    assert table.headers == ("device time", "forecast", "fact", "off by", "on the clock", "fact ")
    assert [cells[:4] for cells in table.rows] == [
        ("targets", "30 s", "1 min 00 s", "-50%"),
        ("search", "3 min 20 s", "4 min 10 s", "-20%"),
        ("finalists", "50 s", "40 s", "+25%"),
        ("total", "4 min 40 s", "5 min 50 s", "-20%"),
    ], "what was in the store before costs nothing on either side"
    kept = json.loads((folder.path / "forecast.json").read_text())
    assert kept["forecast"]["search"]["seconds"] == 200.0
    assert kept["fact"]["search"]["seconds"] == 250.0
    assert kept["fact"]["total"]["seconds"] == 350.0
    assert kept["fact"]["search"]["wall_s"] >= 0


def test_the_clock_of_a_run_that_went_on_says_nothing(folder: RunFolder, store: Store) -> None:
    items = missing(store)
    reckoning.begin(folder, expected(), items)
    write_ledger(folder, items)
    table = reckoning.end(folder, Clock(), is_whole=False)
    assert table is not None
    assert {cells[-1] for cells in table.rows} == {"-"}


@pytest.mark.parametrize("content", [None, "", "[]", '{"missing": []}'])
def test_without_a_forecast_nothing_is_compared(folder: RunFolder, content: str | None) -> None:
    """Runs of earlier versions have none, and what lies in a folder is only data."""
    folder.path.mkdir(parents=True)
    if content is not None:
        (folder.path / "forecast.json").write_text(content)
    assert reckoning.end(folder, Clock(), is_whole=True) is None
    assert reckoning.begin(folder, expected(), [])


def test_the_clock_counts_what_fails_too() -> None:
    clock = Clock()
    with pytest.raises(RuntimeError), clock.around("targets (cnn, vit)"):
        raise RuntimeError
    assert clock.wall.keys() == {"targets"}
