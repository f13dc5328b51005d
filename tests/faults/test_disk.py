"""A disk that is full, for the store or for the results, and has room again when the sweep is run once more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import finish
from harness import Row, Sweep

pytestmark = pytest.mark.slow
SIZE = 24 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("free_kb", [0, 40, 200, 800, 2000])
def test_a_full_disk(
    free_kb: int,
    small_disk: Path,
    undisturbed: Mapping[str, Any],
    row: Callable[[str], Row],
    generator_folder: Path,
) -> None:
    """It ends with what the system says and the place, and no traceback; then it goes on from where it stopped."""
    line = row(f"disk full, {free_kb} kB free for store and results")
    sweep = Sweep.make(small_disk / "sweep", generator_folder)
    (small_disk / "filler").write_bytes(os.urandom(os.statvfs(small_disk).f_bavail * 4096 - free_kb * 1024))
    ended = finish(sweep.start())
    line.tried = 1
    if ended.returncode == 0:
        assert free_kb >= 800, "the whole sweep had room"
    else:
        assert ended.returncode in (1, 2)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "No space left on device" in ended.stderr, ended.stderr
        assert str(small_disk) in ended.stderr or "results/" in ended.stderr, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    (small_disk / "filler").unlink()
    sweep.run()
    assert sweep.outcome() == undisturbed
    line.is_equal = True
