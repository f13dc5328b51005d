"""Writing a file so that a reader, or the next run, sees the old one or the new one and never half of either."""

from __future__ import annotations

import os
import time
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path.parent, path.name)
    try:
        write_synced(part, data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
