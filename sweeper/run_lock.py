"""One driver a run: a lock in the run's folder, which goes with its process however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeper.errors import InputError

FILE = ".lock"
LOOK_S = 0.2  # how long the lock is tried for: `is_held` takes it for a moment


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock for the block.

    Raises:
        InputError: another driver has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("w") as file:
        deadline = time.monotonic() + LOOK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{folder}: another `sweeper run` works on this run; wait for it or stop it"
                    ) from None
                time.sleep(0.01)
        yield


def is_held(folder: Path) -> bool:
    """Whether a driver works on the run."""
    try:
        file = os.open(folder / FILE, os.O_RDONLY)
    except OSError:  # no driver ever did
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
