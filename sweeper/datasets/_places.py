"""Where the files of a dataset lie: on a disk, or anywhere that `pyarrow.fs` reaches by a URI (s3://, gs://, hf://).

Both are asked for the same: open a file, read pieces of files, and say what decides a file's contents. Elsewhere that
is its ETag and size (the hub's sha256 for hf://), as the server keeps them, so that planning a sweep over a bucket does
not read the bucket; an object that was put anew in other parts counts as changed. Where a server keeps none, the bytes
are hashed in passing. Nothing is copied to a disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from sweeper.errors import SweeperError
from sweeper.storage import Storage, sha256_of
from sweeper.wording import one_line

REMOTE_THREADS = 32  # requests at once: each waits some 20 ms for an answer
MAX_FILE_BYTES = 2**30  # a file is held whole while it is decoded; 100 million pixels of 16-bit RGB are 600 MB
_STREAM_BYTES = 4 * 2**20
_MAGIC = "*?[{"
_T = TypeVar("_T")
Piece = tuple[str, int, int | None]  # source, first byte, bytes (None: all from there)


def is_remote(path: str) -> bool:
    """Whether a setting names a URI and no path of this machine."""
    return "://" in path


def hidden(name: str) -> bool:
    """Whether a file or folder is passed over: dot files, and what macOS puts into archives."""
    return name.startswith((".", "__MACOSX"))


class Disk:
    """Files of this machine; a source is an absolute path."""

    def open(self, source: str) -> Any:
        """A `pyarrow.NativeFile` that can seek. Raises OSError: also of what is no file but a pipe."""
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        return pa.OSFile(source)

    def stream(self, source: str) -> Any:
        """A file-like object that reads forward."""
        return open(source, "rb")

    def attempt(self, operation: Callable[[], _T]) -> _T:
        """A disk that fails stays so: once."""
        return operation()

    def version(self, source: str) -> int:
        """Something that changes when the file does."""
        return os.stat(source).st_mtime_ns

    def read(self, pieces: Sequence[Piece]) -> list[bytes | Exception]:
        """Pieces of files, in their order; what cannot be read is its exception."""
        return [_caught(self, piece) for piece in pieces]


class Remote:
    """Files below a URI, which may end in a pattern. A source is a path on `filesystem`, without the URI's secrets.

    A server that fails for a while is asked again, as the store's is (`storage.py`).

    Args:
        where: what messages begin with.
        reached: whether this address has been seen to work, so that an outage is waited for.
    """

    def __init__(self, uri: str, where: str, reached: bool = False) -> None:
        base, query, self.pattern = _without_pattern(uri)
        self.where = where
        self._storage = Storage(base + query, reached)

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem`."""
        return self._storage.filesystem

    @cached_property
    def root(self) -> str:
        """Path of the folder or file that the URI names, less its pattern, on `filesystem`."""
        return self._storage.path("").rstrip("/")

    def files(self) -> dict[str, int]:
        """Bytes of each visible file below the root by relative name, in order; of one file by the name ''."""
        selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)

        def ask() -> list[Any]:
            itself = self.filesystem.get_file_info(self.root)
            return [itself] if itself.is_file else list(self.filesystem.get_file_info(selector))

        infos = self.attempt(ask)
        start = len(self.root) + 1
        found = {info.path[start:]: info.size for info in infos if info.is_file}
        return {name: found[name] for name in sorted(found) if not any(map(hidden, name.split("/")))}

    def source(self, name: str) -> str:
        """The source of a name of `files`."""
        return f"{self.root}/{name}" if name else self.root

    def open(self, source: str) -> Any:
        """A `pyarrow.NativeFile` that can seek. To be called within `attempt`."""
        return self.filesystem.open_input_file(source)

    def stream(self, source: str) -> Any:
        """A file-like object that reads forward, in large pieces. To be called within `attempt`."""
        return self.filesystem.open_input_stream(source, buffer_size=_STREAM_BYTES)

    def attempt(self, operation: Callable[[], _T]) -> _T:
        """Do something that may be done again, until it works or the server has failed for too long.

        Raises:
            FileNotFoundError, pyarrow.ArrowException: what a file is, and not the server.
            SweeperError: the server's failure.
        """
        try:
            return self._storage.attempt(lambda: _with_os_errors(operation))
        except SweeperError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError) or (
                isinstance(cause, pa.ArrowException) and not isinstance(cause, OSError)
            ):
                raise cause from None
            why = one_line(str(cause or error))
            hint = "check the address, the credentials (AWS_ACCESS_KEY_ID, ~/.aws, HF_TOKEN) and the network"
            raise type(error)(f"{self.where}: {self._storage.uri} cannot be read: {why}; {hint}") from cause

    def version(self, source: str) -> int:
        """Asking costs as much as reading, and the index has compared ETags."""
        return 0

    def read(self, pieces: Sequence[Piece]) -> list[bytes | Exception]:
        """Pieces of files, in their order, several at once; a file that is gone is its exception.

        Raises:
            SweeperError: the server's failure, which says nothing about the files.
        """
        with ThreadPoolExecutor(min(REMOTE_THREADS, max(1, len(pieces)))) as threads:
            return list(threads.map(lambda piece: _caught(self, piece), pieces))

    def text(self, name: str) -> str | None:
        """A text file of the root; None where there is none."""
        found = self.read([(self.source(name), 0, None)])[0]
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else None

    def digests(self, names: Sequence[str]) -> list[str]:
        """What stands for each file's contents."""
        with ThreadPoolExecutor(REMOTE_THREADS) as threads:
            return list(threads.map(lambda name: self.attempt(lambda: self._digest(self.source(name))), names))

    def _digest(self, source: str) -> str:
        with self.filesystem.open_input_stream(source) as stream:
            tag = self._tag(source, stream)
            return hashlib.sha256(tag.encode()).hexdigest() if tag else sha256_of(stream)

    def _tag(self, source: str, stream: Any) -> str | None:
        if isinstance(self.filesystem, fs.PyFileSystem):
            info = self.filesystem.handler.fs.info(source)
            lfs = info.get("lfs") or {}
            found = {"etag": info.get("ETag"), "sha256": lfs.get("sha256"), "blob": info.get("blob_id")}
            return next((f"{kind} {tag} {info['size']}" for kind, tag in found.items() if tag), None)
        said = {str(key).lower(): value for key, value in (stream.metadata() or {}).items()}
        if "etag" not in said:
            return None
        return f"etag {said['etag'].decode()} {said.get('content-length', b'').decode()}"


Place = Disk | Remote


def _caught(place: Place, piece: Piece) -> bytes | Exception:
    source, start, count = piece

    def read() -> bytes:
        with place.open(source) as file:
            length = file.size() - start if count is None else count
            if length > MAX_FILE_BYTES:
                raise ValueError(f"{length:,} bytes, more than {MAX_FILE_BYTES:,}")
            data: bytes = file.read_at(length, start)
        if len(data) != length:
            raise ValueError(f"ends {length - len(data):,} bytes early; it was changed since it was listed")
        return data

    try:
        return place.attempt(read)
    except (OSError, ValueError) as error:
        return error


@lru_cache(maxsize=8)
def place_of(path: str, where: str = "dataset") -> Place:
    """The place of a setting that the index has read, with its connections kept, for the tasks."""
    return Remote(path, where, reached=True) if is_remote(path) else Disk()


def fixed_part(text: str) -> tuple[str, str]:
    """A path or URI, cut before the first part that is a pattern, and the rest."""
    parts = text.split("/")
    number = next((i for i, part in enumerate(parts) if any(sign in part for sign in _MAGIC)), len(parts))
    return "/".join(parts[:number]), "/".join(parts[number:])


def _without_pattern(uri: str) -> tuple[str, str, str]:
    """A URI without its pattern, its query (`?endpoint_override=...`, so that `?` is no pattern here), the pattern."""
    path, mark, query = uri.partition("?")
    base, pattern = fixed_part(path)
    return base, mark + query, pattern


def _with_os_errors(operation: Callable[[], _T]) -> _T:
    """The hub's client lets its HTTP library's own errors through."""
    try:
        return operation()
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "aiohttp"):
            raise OSError(f"{type(error).__name__}: {error}") from error
        raise
