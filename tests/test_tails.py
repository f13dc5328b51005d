"""Every file of state with a bad tail is mended or counts as absent, by the very code that reads it when a run goes on.

Journals as such are `test_journals`; a whole sweep whose files all have bad tails is `tests/faults/test_damage.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import space_of, sweep_config
from tails import TAILS

from sweeper.checkpoints import packed, state_of
from sweeper.config import SearchConfig
from sweeper.mailbox import Mailbox
from sweeper.results import RunFolder
from sweeper.retrainings import Outcomes
from sweeper.rungs import Rungs
from sweeper.store import Store
from sweeper.study import Study

TRIES = 10
bad_tails = pytest.mark.parametrize("tail", TAILS)


def harmed(path: Path, tail: str, read: Callable[[], Any]) -> list[Any]:
    """What is read of a file with one bad tail after the other."""
    whole, found = path.read_bytes(), []
    for number in range(TRIES):
        path.write_bytes(TAILS[tail](whole, random.Random(number)))
        found.append(read())
    path.write_bytes(whole)
    return found


@bad_tails
def test_an_outcome_of_a_retraining(tail: str, tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path)
    outcomes.put("final-1", {"accuracy_val": 0.5, "model": {"model.safetensors": b"weights\n", "config.json": b"{}\n"}})
    kept = outcomes.get("final-1")
    assert kept == {"accuracy_val": 0.5}
    for name in ("final-1.json", "final-1/model.safetensors", "final-1/config.json"):
        assert harmed(tmp_path / name, tail, lambda: outcomes.get("final-1")) == [None] * TRIES
    assert outcomes.get("final-1") == kept


@bad_tails
def test_a_checkpoint(tail: str, tmp_path: Path) -> None:
    mailbox = Mailbox(str(tmp_path))
    asyncio.run(mailbox.save("trial-00001", packed({"model": {"weight": torch.rand(99)}}, {"epoch": 3})))

    def read() -> Any:
        state = asyncio.run(mailbox.load("trial-00001"))
        return state_of(state or b"", torch.device("cpu"))

    assert read()["epoch"] == 3
    assert harmed(tmp_path / "trial-00001.pt", tail, read) == [None] * TRIES


@bad_tails
def test_a_record_of_the_store(tail: str, store: Store) -> None:
    prefix = store.staging()
    store.write_bytes(prefix, "a", b"1")
    record = store.commit("key", "images", {"a": "b"}, prefix)
    path = Path(store.uri) / "records" / "key.json"
    assert harmed(path, tail, lambda: store.get("key")) == [None] * TRIES
    assert store.get("key") == record


@bad_tails
def test_a_forecast(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    path.write_bytes(b'{"missing": [], "forecast": {}}')
    assert harmed(path, tail, lambda: RunFolder(tmp_path).read_forecast()) == [{}] * TRIES


@bad_tails
def test_the_study(tail: str, tmp_path: Path) -> None:
    """The trials that were told of before the last line stand; what is left is a journal that can be gone on with."""
    path = tmp_path / "journal.log"

    def study() -> Study:
        return Study(path, SearchConfig(trials=9), space_of(sweep_config()), 0)

    book = study()
    configs = [config for _, config in (book.ask() for _ in range(3))]

    def read() -> Any:
        again = study()
        return [config for _, config in again.interrupted()], again.ask()[0]

    kept = configs[:2] if tail == "torn" else configs
    assert harmed(path, tail, read) == [(kept, len(kept))] * TRIES


@bad_tails
def test_the_rungs(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "rungs.jsonl"

    def rungs() -> Rungs:
        return Rungs([1.0], 2.0, [True], journal=path)

    table = rungs()
    for number in range(5):
        table.report(str(number), 1, [number / 10])
    records = table.records(1.0)
    kept = records[:4] if tail == "torn" else records
    assert harmed(path, tail, lambda: rungs().records(1.0)) == [kept] * TRIES
