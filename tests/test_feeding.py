"""Where a trial's images lie, and how many batches are made at a time, changes no batch: bit for bit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from samples import VIEWS, trial_config, trial_data

from sweeper import feeding, placement
from sweeper.feeding import Batch, BatchStream
from sweeper.jitter import JitterConfig
from sweeper.placement import Placement
from sweeper.train import Trainer, World

CPU = torch.device("cpu")
HOST = Placement(CPU, is_resident=False)
NUM = 18
REACH = 60  # three passes and a bit, in batches of 5: batches that lie in two passes too


def equal(one: Batch, other: Batch) -> bool:
    same = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("images_BCHW", "labels_B", "index_B"))
    if one.teacher is None or other.teacher is None:
        return same and one.teacher is other.teacher and one.num_real == other.num_real
    for field in fields(one.teacher):
        a, b = getattr(one.teacher, field.name), getattr(other.teacher, field.name)
        same = same and (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
    return same and one.num_real == other.num_real


def alone(data: Any, **share: Any) -> list[Batch]:
    """Each batch made by itself."""
    stream = BatchStream(data, batch_size=5, seed=3, device=CPU, **share)
    return [stream.batch(start) for start in range(0, REACH, 5)]


def batches_in(made: list[int]) -> type[BatchStream]:
    """A stream that notes how many batches it makes at a time."""

    class Noted(BatchStream):
        def _make(self, index_KB: Any, number_KB: Any) -> list[Batch]:
            made.append(len(index_KB))
            return super()._make(index_KB, number_KB)

    return Noted


DATA = {
    "taught": trial_data(NUM, taught=True),
    "untaught": trial_data(NUM),
    "half synthetic": replace(trial_data(NUM, taught=True), num_real=9),
    "jittered": trial_data(NUM, views=VIEWS.model_copy(update={"jitter": JitterConfig(brightness=0.4, hue=0.1)})),
}


@pytest.mark.parametrize("name", DATA)
def test_batches_made_ahead_are_those_made_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setitem(feeding.AHEAD_BYTES, "cpu", 4 * 5 * DATA[name].train.images_BCHW[0].numel() * 4)
    stream = batches_in(made)(DATA[name], batch_size=5, seed=3, device=CPU)
    ahead = list(stream.batches(0, REACH))
    assert made == [4, 4, 4]
    assert all(map(equal, ahead, alone(DATA[name])))


def test_nothing_is_made_beyond_what_will_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setitem(feeding.AHEAD_BYTES, "cpu", 2**30)
    stream = batches_in(made)(DATA["taught"], batch_size=5, seed=3, device=CPU)
    for start in (0, 5):
        stream.batch(start)
    stream.will_read(25)
    for start in (10, 15, 20):
        stream.batch(start)
    stream.batch(25)
    assert made == [1, 1, 3, 1]


def test_another_place_or_part_is_not_served_from_what_was_made_ahead() -> None:
    stream, fresh = (BatchStream(DATA["taught"], batch_size=8, seed=3, device=CPU) for _ in range(2))
    stream.will_read(80)
    for start, part, parts in ((0, 0, 1), (8, 1, 2), (8, 0, 1), (40, 0, 1), (0, 0, 1)):
        assert equal(stream.batch(start, part, parts), fresh.batch(start, part, parts))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("share", [{}, {"rank": 1, "num_ranks": 2}])
def test_from_the_host_come_the_batches_of_the_device(name: str, share: dict[str, int]) -> None:
    assert all(map(equal, alone(DATA[name], where=HOST, **share), alone(DATA[name], **share)))


def test_a_training_from_the_host_is_that_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = {"ce": 1.0, "kl": {"weight": 1.0}, "embedding": {"kind": "kdep"}}  # which reads the whole pool as well
    found = []
    for where in (Placement(CPU), HOST):
        monkeypatch.setattr(feeding, "placement", lambda num_bytes, device, where=where: where)
        trainer = Trainer(trial_config(loss=loss), DATA["taught"], seed=1, device=CPU, world=World())
        assert trainer.stream.placement is where
        trainer.run_epoch()
        found.append(trainer.student.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_the_place_is_chosen_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU only the decision can run: the device's answers are made up."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(placement, "_free_bytes", lambda device: 1000)
    assert placement.placement(400, gpu).is_resident
    assert not placement.placement(401, gpu).is_resident
    assert placement.placement(10**15, CPU).is_resident, "on a CPU the host is the device"


def test_what_is_counted_are_images_and_the_columns_that_are_read() -> None:
    data: Any = DATA["taught"]
    columns = sum(column.nbytes for column in data.source.columns.values())
    assert data.num_bytes == data.train.images_BCHW.nbytes + data.train.labels_B.nbytes + columns
    assert DATA["untaught"].num_bytes == data.num_bytes - columns


@pytest.mark.gpu
@pytest.mark.parametrize("name", DATA)
def test_pinned_rows_are_those_on_the_gpu(name: str) -> None:
    gpu = torch.device("cuda")
    streams = [
        BatchStream(DATA[name], batch_size=5, seed=3, device=gpu, where=Placement(gpu, is_resident=resident))
        for resident in (True, False)
    ]
    for start in range(0, REACH, 5):
        assert equal(*(stream.batch(start) for stream in streams))
