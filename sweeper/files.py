"""Writing a file so that a reader, or the next run, sees the old one or the new one and never half of either."""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

PART_SUFFIX = ".part"  # of a file that is not whole yet


def part_path(folder: Path, name: str) -> Path:
    """A hidden name beside `name` that no other process uses."""
    return folder / f".{name}.{os.getpid()}-{time.monotonic_ns()}{PART_SUFFIX}"


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes, *, is_synced: bool = True) -> None:
    """Write a file whole or not at all; makes its folder. `is_synced`: wait until the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path.parent, path.name)
    try:
        write_synced(part, data) if is_synced else part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """A folder with exactly these files; an earlier one is replaced as a whole. Makes the folders above it.

    A process that is killed leaves the earlier folder or the new one, or in between neither and both beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = part_path(path.parent, path.name)
    staged.mkdir()
    try:
        for name, data in files.items():
            write_synced(staged / name, data)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    if path.exists():
        path.rename(part_path(path.parent, path.name))
    staged.rename(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{PART_SUFFIX}"):
        shutil.rmtree(leftover)
