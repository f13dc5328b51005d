"""Files below one URI, on `pyarrow.fs`: opening, listing, hashing, and putting a small file in place at once.

What the place cannot do is told as a sweeper error with the URI. An S3 endpoint other than Amazon's comes from
AWS_ENDPOINT_URL or from the URI (`?scheme=http&endpoint_override=host:port`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sweeper.errors import InputError, RunFailed

_CHUNK_BYTES = 1 << 20


class Storage:
    """A folder, or a prefix of a bucket. Pickles as its URI alone, opens when first used, creates nothing by itself.

    Every method raises InputError while the place was never reached, and RunFailed once it was.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        self._opened: tuple[Any, str] | None = None
        self._reached = False

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return type(self), (self.uri,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def filesystem(self) -> Any:
        """The `pyarrow.fs.FileSystem` that `path` belongs to."""
        return self._open()[0]

    def path(self, name: str) -> str:
        """Where the file or folder `name` lies on `filesystem`."""
        return f"{self._open()[1]}/{name}"

    def create_dir(self, name: str) -> None:
        """Make a folder and those above it. Raises InputError: one cannot write here."""
        try:
            self.filesystem.create_dir(self.path(name), recursive=True)
        except OSError as error:
            raise InputError(f"store: cannot write to {self.uri}: {error}; give another place with --store") from error

    def listing(self, name: str, recursive: bool = False) -> list[Any]:
        """`pyarrow.fs.FileInfo` of what lies below `name`; nothing where there is no such folder."""
        with self.reporting():
            found: list[Any] = self.filesystem.get_file_info(
                fs.FileSelector(self.path(name), recursive=recursive, allow_not_found=True)
            )
        return found

    def files(self, name: str, deep: bool) -> dict[str, tuple[int, str | None]]:
        """Bytes and, if `deep`, sha256 of all files below a folder, by relative name in order."""
        start = len(self.path(name)) + 1
        found = {info.path[start:]: info for info in self.listing(name, recursive=True) if info.is_file}
        return {key: (found[key].size, self._sha256(f"{name}/{key}") if deep else None) for key in sorted(found)}

    def read(self, name: str) -> bytes | None:
        """All bytes of a file, or None where there is none."""
        data: bytes | None = None
        with (
            self.reporting(),
            suppress(FileNotFoundError),
            self.filesystem.open_input_stream(self.path(name)) as stream,
        ):
            data = stream.read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file and the folders above it. Not atomic in a folder; a put to an object store is."""
        path = self.path(name)
        with self.reporting():
            if self._is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)

    def publish(self, name: str, data: bytes, after: Iterable[str], is_taken: Callable[[], bool]) -> None:
        """Put a small file in place with all its bytes at once, unless a good one came to be there.

        Args:
            after: files of the same place that a folder must have on disk before, so that a loss of power never leaves
                this one without them.
            is_taken: whether what lies at `name` is good, if anything does. `pyarrow.fs` has no conditional put: on an
                object store two writers that both asked before either one put both write, and the later one stays.
        """
        if not self._is_local:
            if not is_taken():
                self.write(name, data)
            return
        target = Path(self.path(name))
        temporary = target.with_name(f"{target.stem}.{secrets.token_hex(8)}.tmp")
        with self.reporting():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            files = [Path(self.path(other)) for other in after]
            _flush([*files, *{file.parent for file in files}, temporary])
            try:
                os.link(temporary, target)  # fails where a file is: of two writers the first one wins
            except OSError:  # there is one, or the filesystem has no hard links
                if not is_taken():
                    os.replace(temporary, target)
            temporary.unlink(missing_ok=True)
            _flush([target.parent])

    def delete(self, name: str, folder: bool = False) -> None:
        """Delete a file, or a folder with all below it; nothing happens where there is none."""
        with self.reporting(), suppress(FileNotFoundError):
            (self.filesystem.delete_dir if folder else self.filesystem.delete_file)(self.path(name))

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turns what the filesystem or a file's format raises into a sweeper error with the URI."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if self._reached:
                raise RunFailed(f"store: {self.uri} failed: {error}") from error
            raise InputError(f"store: cannot reach {self.uri}: {error}; give another place with --store") from error
        self._reached = True

    @property
    def _is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                if "://" in self.uri:
                    filesystem, root = fs.FileSystem.from_uri(self.uri)
                else:
                    filesystem, root = fs.LocalFileSystem(), self.uri
            except (OSError, ValueError, pa.ArrowException) as error:
                raise InputError(f"store: cannot open {self.uri}: {error}; give a folder or s3://...") from error
            self._opened = filesystem, root.rstrip("/")
        return self._opened

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.reporting(), self.filesystem.open_input_stream(self.path(name)) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


def _flush(paths: Sequence[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
