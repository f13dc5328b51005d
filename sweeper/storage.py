"""Files below one URI, on `pyarrow.fs`: reading, writing, listing, hashing, and putting a small file in place at once.

What the place cannot do is told as a sweeper error with the URI. Everything here may be done twice, so that a server
that fails for a while is asked again until `PATIENCE_S` is over. An S3 endpoint other than Amazon's comes from
AWS_ENDPOINT_URL or from the URI (`?scheme=http&endpoint_override=host:port`); `fsspec+<protocol>://...` is any place
that an installed fsspec knows.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.files import PART_SUFFIX, write_atomically
from sweeper.redact import redacted

PATIENCE_S = 60.0  # an outage of 20 s is survived, with the pauses and time-outs in between
FIRST_PATIENCE_S = 3.0  # of a place that was never reached: its address is more likely wrong than its server ill
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 3.0, 10.0  # seconds without a byte; pyarrow's own waits 100 s at a mute server
SETTLE_S = 0.5  # an object store shows a write to all readers at once; this is for a rival that is between two calls
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CHUNK_BYTES = 1 << 20
_LASTING = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "bucket_creation")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_T = TypeVar("_T")


class Storage:
    """A folder, or a prefix of a bucket. Opens when first used, creates nothing by itself.

    Pickles as its URI and whether it was reached: a worker that starts during an outage is as patient as its driver.
    Every method raises InputError while the place was never reached, and RunFailed once it was.
    """

    def __init__(self, uri: str, reached: bool = False) -> None:
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        self._opened: tuple[Any, str] | None = None
        self._reached = reached

    def __reduce__(self) -> tuple[type[Storage], tuple[str, bool]]:
        return type(self), (self.uri, self._reached)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self.uri)!r})"

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `path` belongs to."""
        return self._open()[0]

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine, or one that is mounted here."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Where the file or folder `name` lies on `filesystem`."""
        return f"{self._open()[1]}/{name}"

    def create_dir(self, name: str) -> None:
        """Make a folder and those above it. Raises InputError: one cannot write here."""
        try:
            self.attempt(lambda: self.filesystem.create_dir(self.path(name), recursive=True))
        except SweeperError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno in _FULL:
                raise
            why = f"{error.__cause__}; give another place with --store"
            raise InputError(f"store: cannot write to {self.uri}: {why}") from error

    def listing(self, name: str, recursive: bool = False) -> list[Any]:
        """`pyarrow.fs.FileInfo` of what lies below `name`; nothing where there is no such folder."""
        selector = fs.FileSelector(self.path(name), recursive=recursive, allow_not_found=True)
        found: list[Any] = self.attempt(lambda: self.filesystem.get_file_info(selector))
        return found

    def files(self, name: str, deep: bool) -> dict[str, tuple[int, str | None]]:
        """Bytes and, if `deep`, sha256 of all whole files below a folder, by relative name in order."""
        start = len(self.path(name)) + 1
        found = {
            info.path[start:]: info
            for info in self.listing(name, recursive=True)
            if info.is_file and not info.path.endswith(PART_SUFFIX)
        }
        return {key: (found[key].size, self._sha256(f"{name}/{key}") if deep else None) for key in sorted(found)}

    def read(self, name: str) -> bytes | None:
        """All bytes of a file, or None where there is none."""

        def whole() -> bytes | None:
            with suppress(FileNotFoundError), self.filesystem.open_input_stream(self.path(name)) as stream:
                data: bytes = stream.read()
                return data
            return None

        return self.attempt(whole)

    def copy_to(self, name: str, target: IO[bytes]) -> bool:
        """Write all bytes of a file over those of an open one, in pieces. Returns False where there is no such file."""

        def copy() -> bool:
            target.seek(0)
            with suppress(FileNotFoundError), self.filesystem.open_input_stream(self.path(name)) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    target.write(chunk)
                target.truncate()
                return True
            return False

        return self.attempt(copy)

    def write(self, name: str, data: bytes) -> None:
        """Write a file and the folders above it: whole or not at all, a folder's file on disk when this returns."""
        path = self.path(name)
        if self.is_local:
            self.attempt(lambda: write_atomically(Path(path), data))
            return

        def put() -> None:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)

        self.attempt(put)

    def publish(self, name: str, data: bytes, after: Iterable[str], is_taken: Callable[[], bool]) -> None:
        """Put a small file in place with all its bytes at once, unless a good one came to be there.

        Args:
            after: files of the same place that a folder must have on disk before, so that a loss of power never leaves
                this one without them.
            is_taken: whether what lies at `name` is good, if anything does. `pyarrow.fs` has no conditional put: on an
                object store two writers that both asked before either one put both write, and the later one stays.
        """
        if not self.is_local:
            if not is_taken():
                self.write(name, data)
            return
        self.attempt(lambda: self._link(Path(self.path(name)), data, after, is_taken))

    def _link(self, target: Path, data: bytes, after: Iterable[str], is_taken: Callable[[], bool]) -> None:
        temporary = target.with_name(f"{target.stem}.{secrets.token_hex(8)}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            files = [Path(self.path(other)) for other in after]
            _flush([*files, *{file.parent for file in files}, temporary])
            try:
                os.link(temporary, target)  # fails where a file is: of two writers the first one wins
            except OSError:  # there is one, or the filesystem has no hard links
                if not is_taken():
                    os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.unlink(missing_ok=True)
        _flush([target.parent])

    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """Replace a small file if it still holds `old` (None: is not there). Returns whether `new` is there now.

        In a folder at most one of several callers gets True. An object store has no such call in `pyarrow.fs`: there a
        caller writes, waits `SETTLE_S` and looks who was last, so that two may get True if one of them stood still for
        longer than that between its own two calls.
        """
        if self.is_local:
            return self.attempt(lambda: self._swap_locked(Path(self.path(name)), old, new))
        if self.read(name) != old:
            return False
        self.write(name, new)
        time.sleep(SETTLE_S)
        return self.read(name) == new

    def _swap_locked(self, path: Path, old: bytes | None, new: bytes) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path.read_bytes() if path.exists() else None) != old:
                return False
            write_atomically(path, new)
            return True

    def delete(self, name: str, folder: bool = False) -> None:
        """Delete a file, or a folder with all below it; nothing happens where there is none."""

        def remove() -> None:
            path = self.path(name)
            if folder and self.filesystem.get_file_info(path).type == fs.FileType.NotFound:
                return  # Google's filesystem has no FileNotFoundError for it
            with suppress(FileNotFoundError):
                (self.filesystem.delete_dir if folder else self.filesystem.delete_file)(path)

        self.attempt(remove)

    def attempt(self, operation: Callable[[], _T]) -> _T:
        """Do something that may be done again, and do so while the place fails as one does that will come back.

        Raises:
            SweeperError: what the filesystem or a file's format said, the URI, and for how long it was tried.
        """
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                result = operation()
            except (OSError, pa.ArrowException) as error:
                tried_s = time.monotonic() - began
                patience_s = PATIENCE_S if self._reached else FIRST_PATIENCE_S
                if not self._may_pass(error) or tried_s + pause > patience_s:
                    raise self._failure(error, tried_s) from error
                time.sleep(pause * random.uniform(0.8, 1.2))  # many workers lose one server at the same moment
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._reached = True
                return result

    def _may_pass(self, error: Exception) -> bool:
        if self.is_local or (isinstance(error, pa.ArrowException) and not isinstance(error, OSError)):
            return False  # a disk that fails stays so; bytes that are no parquet file do as well
        if isinstance(error, FileNotFoundError | PermissionError):
            return False
        return error.errno not in _FULL and not any(name in str(error) for name in _LASTING)  # type: ignore[attr-defined]

    def _failure(self, error: Exception, tried_s: float) -> SweeperError:
        if isinstance(error, OSError) and error.errno in _FULL:
            return RunFailed(
                f"store: no space left at {self.uri} ({error}); what was finished is kept: "
                "make room (`sweeper store gc` lists and removes what nothing uses) and run again"
            )
        tried = f" (tried for {tried_s:.0f} s)" if tried_s >= 1 else ""
        if self._reached:
            return RunFailed(f"store: {self.uri} failed{tried}: {error}")
        return InputError(f"store: cannot reach {self.uri}{tried}: {error}; give another place with --store")

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                if "://" in self.uri:
                    filesystem, root = fs.FileSystem.from_uri(self.uri)
                else:
                    filesystem, root = fs.LocalFileSystem(), self.uri
            except (OSError, ValueError, ImportError, pa.ArrowException) as error:
                raise InputError(f"store: cannot open {self.uri}: {error}; give a folder or s3://...") from error
            self._opened = _impatient(filesystem), root.rstrip("/")
        return self._opened

    def _sha256(self, name: str) -> str:
        def digest() -> str:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return sha256_of(stream)

        return self.attempt(digest)


def sha256_of(stream: Any) -> str:
    """Digest of what is left of an open file, read in pieces."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _impatient(filesystem: Any) -> Any:
    """A filesystem that tells of a failure soon and once: `Storage` is patient for it, and knows for how long."""
    if filesystem.type_name not in ("s3", "gcs"):
        return filesystem
    _, (options,) = filesystem.__reduce__()  # the only way to learn what the URI and the environment said
    if filesystem.type_name == "gcs":  # its own limit is 15 minutes
        return type(filesystem)(**{**options, "retry_time_limit": timedelta(seconds=CONNECT_TIMEOUT_S)})
    return fs.S3FileSystem(
        **{**options, "connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S},
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def _flush(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
