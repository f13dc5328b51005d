"""A file is the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweeper import files
from sweeper.files import write_atomically, write_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_holds_what_was_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a file.json"
    for data in (b"first", b"", b"\x00second\n"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert names(path.parent) == ["a file.json"]


def test_it_has_the_mode_of_an_ordinary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "one", b"")
    (tmp_path / "two").write_bytes(b"")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fails(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fails)
        with pytest.raises(error):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_new_file_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_atomically(path, b"data")
    assert order == ["fsync", "replace"]


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    assert files.part_path(tmp_path, "x") != files.part_path(tmp_path, "x")
    assert files.part_path(tmp_path, "x").name.startswith("."), "hidden from those who list the folder"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "a [folder]"
    write_folder(folder, {"a": b"1", "b": b"2"})
    part = files.part_path(folder.parent, folder.name)  # of a process that was killed
    part.mkdir()
    write_folder(folder, {"b": b"3"})
    assert names(folder) == ["b"]
    assert (folder / "b").read_bytes() == b"3"
    assert names(folder.parent) == ["a [folder]"]


def test_a_folder_that_can_not_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "x", {"a": b"old"})
    write = files.write_synced
    monkeypatch.setattr(files, "write_synced", lambda path, data: write(path, data) if path.name == "a" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "x", {"a": b"new", "b": b"new"})
    assert (tmp_path / "x" / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]
