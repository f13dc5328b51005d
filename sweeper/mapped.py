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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sweeper.fingerprint import fingerprint
from sweeper.shard_cache import ShardCache

FORMAT = 1  # of what the arrays hold; another one leaves the files of this one unread
_DIGEST_BYTES = hashlib.sha256().digest_size
_compared: set[str] = set()  # names of files that this process has found whole

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Filled:
    """An array that is written part by part, so that its file may be larger than the memory.

    Attributes:
        fill: writes every element of what it is given, a `np.memmap` or, where the cache has no room, an array.
        before_memory: called before such an array is made; may raise.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Callable[[np.ndarray], None]
    before_memory: Callable[[], None] = lambda: None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, array: np.ndarray) -> Filled:
        return cls(array.shape, array.dtype, lambda out: np.copyto(out, array))


def arrays(
    identity: Any, names: Sequence[str], make: Callable[[Sequence[str]], Mapping[str, np.ndarray | Filled]]
) -> Arrays:
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
                found[name] = _kept(cache, files[name], made[name])
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


def _kept(cache: ShardCache, file: str, made: np.ndarray | Filled) -> np.ndarray:
    """The array as a file of the cache, or in memory where there is no room for it."""
    filled = Filled.of(made) if isinstance(made, np.ndarray) else made
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(filled.dtype), "fortran_order": False, "shape": filled.shape}
    np.lib.format.write_array_header_1_0(head, described)
    start, num_bytes = head.tell(), filled.num_bytes

    def write(target: IO[bytes]) -> bool:
        target.write(head.getvalue())
        target.flush()
        if num_bytes:  # nothing cannot be mapped
            out = np.memmap(target, filled.dtype, "r+", start, filled.shape)
            filled.fill(out)
            out.flush()
        target.seek(0)
        digest = hashlib.sha256(np.memmap(target, np.uint8, "r", shape=(start + num_bytes,)).data).digest()
        target.seek(start + num_bytes)
        target.write(digest)
        return True

    path = cache.path(file, start + num_bytes + _DIGEST_BYTES, write)
    opened = None if path is None else _opened(path)
    if opened is not None:
        return opened
    if isinstance(made, np.ndarray):
        return made
    made.before_memory()
    array = np.empty(made.shape, made.dtype)
    made.fill(array)
    return array


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
