"""Files of a distant store on this machine's disk, each fetched once by all processes of the node, in bounded room.

    <folder>/<sha256>          a whole file, named by its contents; the time of its last use is its mtime
    <folder>/<sha256>.part     one that is being fetched, as large as it will be; who fetches it holds a lock on it

Named by contents, a file belongs to no store and can never be out of date. The arrays of `mapped` lie here too, named
by a fingerprint of the contents that they were made from. Locks go with their process, so that what a killed one left
is taken over by whoever wants the same file, or is evicted like any other.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sweeper.errors import InputError

FOLDER_VARIABLE, BOUND_VARIABLE = "SWEEPER_CACHE", "SWEEPER_CACHE_GB"
DEFAULT_FOLDER, DEFAULT_GB = "~/.cache/sweeper/shards", 20.0
_PART = ".part"


class ShardCache:
    """A folder of at most `max_bytes`, files that are being fetched counted; least recently used files go first."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    @classmethod
    def from_environment(cls) -> ShardCache:
        """`SWEEPER_CACHE` names the folder and `SWEEPER_CACHE_GB` bounds it; 0 keeps nothing. Raises InputError."""
        given = os.environ.get(BOUND_VARIABLE, str(DEFAULT_GB))
        try:
            max_bytes = int(float(given) * 1e9)
        except (ValueError, OverflowError):
            raise InputError(f"{BOUND_VARIABLE}: {given!r}; allowed: a number of gigabytes, 0 or more") from None
        return cls(Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser(), max_bytes)

    def path(self, sha256: str, size: int, fetch: Callable[[IO[bytes]], bool]) -> Path | None:
        """Where the file with this digest lies, fetched if need be; another process may evict it at any time.

        The contents are not compared with the digest: whoever reads them does that, and calls `forget`.

        Args:
            size: in bytes; what does not fit within the bound is not fetched.
            fetch: writes the contents into an open file from its start; False: there are none.

        Returns:
            None where it could not be fetched, there is no room for it, or no folder that one could write to.
        """
        if size > self.max_bytes:
            return None
        target, part = self.folder / sha256, self.folder / f"{sha256}{_PART}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not _touched(target):
                with _locked(part) as file:
                    if file is None:
                        continue  # another process had it first, and is done with it
                    if target.exists():
                        part.unlink()
                    elif not self._reserve(part, file, size) or not fetch(file):
                        part.unlink()
                        return None
                    else:
                        file.flush()
                        with self._exclusive():  # whoever sums up sizes sees it under one of its names
                            os.replace(part, target)
        except OSError:  # a full disk, a folder that is not ours: the store itself is still there
            return None
        return target

    def forget(self, sha256: str) -> None:
        """Delete a file whose contents are not what its name says."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _reserve(self, part: Path, file: IO[bytes], size: int) -> bool:
        """Make room, and give the part its full size, so that other processes count it."""
        with self._exclusive():
            held = sorted((used, num_bytes, path) for path, used, num_bytes in self._held() if path != part)
            room = self.max_bytes - sum(num_bytes for _, num_bytes, _ in held)
            for _, num_bytes, path in held:
                if room >= size:
                    break
                if _evicted(path):
                    room += num_bytes
            if room < size:
                return False
            file.truncate(size)
            if size:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows here, and not while it is fetched
            return True

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _held(self) -> Iterator[tuple[Path, int, int]]:
        """Path, ns of the last use, and bytes of everything in the folder that is ours."""
        for path in self.folder.iterdir():
            if len(path.name.removesuffix(_PART)) == 64:
                try:
                    info = path.stat()
                except FileNotFoundError:
                    continue
                yield path, info.st_mtime_ns, info.st_size


def _touched(path: Path) -> bool:
    """Mark a file as just used. False: there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _evicted(path: Path) -> bool:
    """Delete a whole file, or a part that nobody is fetching."""
    if path.suffix != _PART:
        path.unlink(missing_ok=True)
        return True
    with _locked(path, wait=False) as part:
        if part is not None:
            path.unlink(missing_ok=True)
    return part is not None


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """The file at `path`, made if need be, open and locked; None if it went away meanwhile or another one has it."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        yield file if is_ours else None
