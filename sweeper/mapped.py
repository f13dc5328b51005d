"""Arrays that all processes of a node read: each lies in one file of the node's cache, which every one of them maps.

Lanes on one machine train on the same images and targets. As tables each lane held its own copy; mapped, they share the
operating system's page cache, a trial begins without decoding anything, and what is larger than the memory is read as
it is asked for. One process makes what is missing while the others wait.

A file is an array in NumPy's own format (`.npy`), closed by the sha256 of all before it, which each process compares
once. Its name is a fingerprint of what it was made from, so that it can never be out of date; `shard_cache` bounds
their room. Where that has none, arrays stay in the memory of the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from sweeper.fingerprint import fingerprint
from sweeper.shard_cache import ShardCache

FORMAT = 1  # of what the arrays hold; another one leaves the files of this one unread
_DIGEST_BYTES = hashlib.sha256().digest_size
_compared: set[str] = set()  # names of files that this process has found whole

Arrays = dict[str, np.ndarray]


def arrays(identity: Any, names: Sequence[str], make: Callable[[Sequence[str]], Mapping[str, np.ndarray]]) -> Arrays:
    """The named arrays of one thing, mapped copy-on-write: writing to one changes it for this process alone.

    Args:
        identity: what they are made from, as JSON; equal arrays for equal identities.
        make: gives those of the names that no file holds.
    """
    cache = ShardCache.from_environment()
    files = {name: fingerprint(["mapped", FORMAT, identity, name]) for name in names}
    found = _mapped(cache, files)
    if found.keys() != files.keys():
        with _one_at_a_time(cache):
            found |= _mapped(cache, {name: file for name, file in files.items() if name not in found})
            missing = [name for name in names if name not in found]
            made = make(missing) if missing else {}
            for name in missing:
                found[name] = _kept(cache, files[name], np.ascontiguousarray(made[name]))
    return found


def _mapped(cache: ShardCache, files: Mapping[str, str]) -> Arrays:
    """Those that lie in the cache, whole."""
    found = {}
    for name, file in files.items():
        # of no size: one that is not there is not made room for
        path = cache.path(file, 0, lambda _: False) if cache.max_bytes else None
        array = None if path is None else _opened(path)
        if array is not None:
            found[name] = array
        elif path is not None:
            cache.forget(file)
    return found


def _opened(path: Path) -> np.ndarray | None:
    """The array in a file; None where it is torn, changed or was just evicted."""
    try:
        if path.name not in _compared:
            content = np.memmap(path, dtype=np.uint8, mode="r")
            if hashlib.sha256(content[:-_DIGEST_BYTES].data).digest() != content[-_DIGEST_BYTES:].tobytes():
                return None
            _compared.add(path.name)
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array


def _kept(cache: ShardCache, file: str, array: np.ndarray) -> np.ndarray:
    """The array as a file of the cache, or itself where there is no room for it."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    parts = (memoryview(head.getvalue()), array.reshape(-1).view(np.uint8).data)

    def write(target: IO[bytes]) -> bool:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            target.write(part)
        target.write(digest.digest())
        return True

    size = sum(part.nbytes for part in parts) + _DIGEST_BYTES
    path = cache.path(file, size, write)
    opened = None if path is None else _opened(path)
    return array if opened is None else opened


@contextmanager
def _one_at_a_time(cache: ShardCache) -> Iterator[None]:
    """No two processes of a node make the same arrays; without a folder that one could write to, each makes its own."""
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        lock = (cache.folder / ".arrays").open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
