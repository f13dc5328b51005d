"""Arrays that the processes of a node share: the same bytes, made once, never torn, never in the way."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeper import mapped

MADE: dict[str, np.ndarray] = {
    "images": np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8),
    "keys": np.array([0, 2**64 - 1], dtype=np.uint64),
    "targets": np.linspace(-1, 1, 24, dtype=np.float16).reshape(2, 3, 4),
    "nothing": np.empty((0, 3), dtype=np.int64),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, seen by a process that has compared no file yet."""
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "_compared", set())
    return tmp_path / "cache"


class Making:
    """Gives what it is asked for, and writes down what that was."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> mapped.Arrays:
        self.asked.append(list(names))
        return {name: MADE[name] for name in names}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if len(path.name) == 64]


def same(found: mapped.Arrays) -> bool:
    return all(value.dtype == MADE[n].dtype and np.array_equal(value, MADE[n]) for n, value in found.items())


def test_what_was_made_once_is_mapped_from_then_on(folder: Path) -> None:
    making = Making()
    first = mapped.arrays("x", list(MADE), making)
    again = mapped.arrays("x", ["targets", "keys"], making)
    assert same(first)
    assert same(again)
    assert again.keys() == {"targets", "keys"}
    assert all(isinstance(value, np.memmap) for value in again.values())
    assert making.asked == [list(MADE)]
    assert len(files(folder)) == len(MADE)


def test_only_what_is_missing_is_made(folder: Path) -> None:
    making = Making()
    mapped.arrays("x", ["images"], making)
    mapped.arrays("x", ["keys", "images"], making)
    mapped.arrays("y", ["images"], making)
    assert making.asked == [["images"], ["keys"], ["images"]]


def test_writing_to_an_array_changes_no_one_elses(folder: Path) -> None:
    making = Making()
    mine = mapped.arrays("x", ["images"], making)["images"]
    mine[:] = 0
    assert same(mapped.arrays("x", ["images"], making))


@pytest.mark.parametrize("place", [0, 130, -1])
def test_a_damaged_file_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    making = Making()
    mapped.arrays("x", ["images"], making)
    (file,) = files(folder)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(mapped, "_compared", set())  # as another process
    assert same(mapped.arrays("x", ["images"], making))
    assert len(making.asked) == 2
    assert bytes(content) != file.read_bytes()


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_cut_file_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    making = Making()
    mapped.arrays("x", ["images"], making)
    (file,) = files(folder)
    os.truncate(file, cut)
    monkeypatch.setattr(mapped, "_compared", set())
    assert same(mapped.arrays("x", ["images"], making))
    assert len(making.asked) == 2


@pytest.mark.parametrize(("name", "value"), [("SWEEPER_CACHE_GB", "0"), ("SWEEPER_CACHE_GB", "1e-7")])
def test_without_room_arrays_stay_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    making = Making()
    assert same(mapped.arrays("x", ["images", "keys"], making))
    assert same(mapped.arrays("x", ["images"], making))
    assert making.asked == [["images", "keys"], ["images"]]


def test_without_a_folder_arrays_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", "/proc/nowhere")
    making = Making()
    assert same(mapped.arrays("x", ["images"], making))
    assert making.asked == [["images"]]


def test_an_evicted_file_stays_mapped(folder: Path) -> None:
    found = mapped.arrays("x", ["images"], Making())
    for file in files(folder):
        file.unlink()
    assert same(found)


def _make_slowly(counter: Any, start: Any) -> bool:
    def make(names: Sequence[str]) -> mapped.Arrays:
        with counter.get_lock():
            counter.value += 1
        return {name: MADE[name] for name in names}

    start.wait()
    return same(mapped.arrays("x", ["images", "targets"], make))


def test_processes_wait_for_the_one_that_makes(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    counter, start = context.Value("i", 0), context.Event()
    processes = [context.Process(target=_make_slowly, args=(counter, start)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.value == 1
