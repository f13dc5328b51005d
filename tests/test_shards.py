"""The pass that all stages share: every row once, summaries home, files named by what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pytest

from sweeper import shards
from sweeper.errors import RunFailed
from sweeper.shards import Shape
from sweeper.store import Store

ROWS = pa.table({"number": range(25)})


class Squares:
    """Writes the squares of its rows."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix, self.batches = store, prefix, 0

    def __call__(self, rows: pa.Table) -> shards.Summary:
        self.batches += 1
        numbers = rows["number"].to_pylist()
        size = shards.write_rows(self.store, self.prefix, pa.table({"square": [n * n for n in numbers]}), numbers)
        who = {"worker": f"{os.getpid()}/{id(self)}", "batch": self.batches}
        return {"rows": len(rows), "bytes": size, "first": numbers[0], **who}


class Refuses:
    """Finds something wrong with row 13, or before it has seen a row."""

    def __init__(self, early: bool) -> None:
        if early:
            raise RunFailed("there is no generator")

    def __call__(self, rows: pa.Table) -> shards.Summary:
        if 13 in rows["number"].to_pylist():
            raise RunFailed("row 13 is no good")
        return {"rows": len(rows), "bytes": 0}


@pytest.mark.parametrize("pool", [0, 1])
def test_every_row_once(ray_session: None, store: Store, pool: int) -> None:
    """Actors (pool 1) build their worker once and keep it, tasks (pool 0) once a batch."""
    prefix, told = store.staging(), list[tuple[int, int]]()
    done = shards.run(ROWS, partial(Squares, store, prefix), Shape(4, pool=pool), lambda *said: told.append(said))
    assert sorted(summary["first"] for summary in done) == [0, 4, 8, 12, 16, 20, 24]
    assert sorted(rows for rows, _ in told) == [1, 4, 4, 4, 4, 4, 4]
    files = store.storage.files(prefix, deep=True).values()
    assert sorted(size for _, size in told) == sorted(size for size, _ in files)
    squares = shards.written(store, prefix, ["square"])["square"].to_pylist()
    assert sorted(squares) == [n * n for n in range(25)]
    assert max(summary["batch"] for summary in done) == (7 if pool else 1)
    assert os.getpid() not in {int(summary["worker"].split("/")[0]) for summary in done}


def test_a_batch_that_runs_twice_leaves_its_rows_once(store: Store) -> None:
    prefix = store.staging()
    for _ in range(2):
        Squares(store, prefix)(ROWS.slice(0, 4))
    Squares(store, prefix)(ROWS.slice(4, 4))
    assert sorted(shards.written(store, prefix, ["square"])["square"].to_pylist()) == [n * n for n in range(8)]
    assert shards.read_rows(store, prefix, [4, 5, 6, 7])["square"].to_pylist() == [16, 25, 36, 49]


def test_a_pass_without_rows_starts_nothing() -> None:
    assert shards.run(ROWS.slice(0, 0), partial(Refuses, True), Shape(4)) == []


@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("early", [False, True])
def test_a_users_mistake_comes_home_as_it_was_raised(
    ray_session: None, capfd: pytest.CaptureFixture[str], pool: int, early: bool
) -> None:
    """Also that of a worker that can not be built."""
    capfd.readouterr()
    with pytest.raises(RunFailed) as caught:
        shards.run(ROWS, partial(Refuses, early), Shape(4, pool=pool))
    assert str(caught.value) == ("there is no generator" if early else "row 13 is no good")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rows", "batch", "totals", "gpus", "first", "most"),
    [
        (20, 64, {"CPU": 2}, 0, 1, 1),  # less than a batch: one worker
        (128, 64, {"CPU": 8}, 0, 1, 1),  # two batches: a second worker's start costs more than it brings
        (129, 64, {"CPU": 8}, 0, 2, 2),
        (100_000, 64, {"CPU": 8}, 0, 8, 782),
        (100_000, 64, {"CPU": 8, "GPU": 2}, 1, 2, 782),
        (100_000, 64, {"CPU": 64}, 1, 1, 782),
    ],
)
def test_a_pool_begins_with_the_slots_that_are_there(
    monkeypatch: pytest.MonkeyPatch, rows: int, batch: int, totals: dict[str, float], gpus: int, first: int, most: int
) -> None:
    monkeypatch.setattr(shards.ray, "cluster_resources", lambda: totals)
    shape = Shape(batch, gpus=gpus, pool=shards.pool_size(rows, batch))
    pool = shards._pool(shape, -(-rows // batch))
    assert (pool.min_size, pool.initial_size, pool.max_size) == (1, first, most)


def test_fixed_lists_keep_their_rows() -> None:
    import numpy as np

    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (values, np.asfortranarray(values), values[:, ::1]):
        column = shards.fixed_lists(array, pa.float16())
        assert column.type == pa.list_(pa.float16(), 4)
        assert column.to_pylist() == values.tolist()


def inline(rows: pa.Table, make: Callable[[], shards.Worker], shape: Shape, progress: shards.Progress | None = None):  # type: ignore[no-untyped-def]
    """`shards.run` in this process: what the tests of the stages patch in where they change what a worker does."""
    worker = make()
    return [worker(rows.slice(start, shape.batch_size)) for start in range(0, len(rows), shape.batch_size)]
