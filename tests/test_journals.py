"""What a crash, a loss of power or a copy leaves at the end of a journal is taken away, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.errors import RunFailed
from sweeper.journals import mend

A, B, C = b'{"a": 1}\n', b'{"b": [2, {"c": "x\\ny"}]}\n', b'{"c": "\xc3\xa9"}\n'


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"", b""),
        (A + B, A + B),
        (A + b'{"b"', A),
        (b'{"a"', b""),
        (A + b'{"b": 2}', A),
        (A + B + b"\0" * 4096, A + B),
        (A + B + b"\0\0\n\0\0\n", A + B),
        (A + B + b"\xff\xfe garbage\n" + b"more\n" + b"torn", A + B),
        (A + b"17\n[1]\nnull\n", A),
        (A + B + B, A + B),
        (A + B + C + B + C, A + B + C),
        (b"\n", b""),
    ],
    ids=str,
)
def test_good_lines_stay_once_each(tmp_path: Path, data: bytes, kept: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    mend(path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_a_good_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(A + B)
    before = path.stat()
    mend(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_makes_no_file(tmp_path: Path) -> None:
    mend(tmp_path / "journal")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"\0\0\n", b'{"a": 1\n', b"[]\n", b"\n"])
def test_damage_in_the_middle_is_not_passed_over(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(A + damage + B)
    with pytest.raises(RunFailed, match=r"journal:2: damaged, with good lines after it; restore it, or remove it"):
        mend(path)
    assert path.read_bytes() == A + damage + B, "nothing is lost"
