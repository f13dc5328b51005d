"""The members of an uncompressed tar, from front to back in one pass, and where their bytes lie.

Nothing is unpacked: a member's name is text and its links are not followed. Python's `tarfile` takes a header that it
cannot read for the end of the archive; here that is an error, since the rest of a shard that was cut short would be
lost without a word.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

_STEP_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """A regular file: its name as it stands, its first byte in the archive, and its bytes as an open stream."""

    name: str
    start: int
    size: int
    stream: IO[bytes]  # until the next member


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: Any) -> _Header:
        try:
            return super().fromtarfile(tarfile)
        except _End:
            raise
        except _HeaderError as error:
            raise _ReadError(f"{error} at byte {tarfile.offset:,}") from error


_End, _HeaderError, _ReadError = tarfile.EOFHeaderError, tarfile.HeaderError, tarfile.ReadError  # type: ignore[attr-defined]


def members(archive: IO[bytes]) -> Iterator[Member]:
    """Regular files of a stream that only reads forward.

    Raises:
        tarfile.ReadError: it is no tar, is compressed, ends early, or stores a file with holes.
    """
    try:
        with tarfile.open(fileobj=archive, mode="r|", bufsize=_STEP_BYTES, tarinfo=_Header) as tar:
            for found in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow with the archive
                if not found.isreg():
                    continue
                if found.size < 0 or found.issparse():
                    raise _ReadError(f"{found.name!r} is stored with holes or with a size below zero")
                stream = tar.extractfile(found)
                assert stream is not None
                yield Member(found.name, found.offset_data, found.size, stream)
    except (ValueError, OverflowError, LookupError) as error:  # what a header of noise does to its parser
        raise _ReadError(f"{type(error).__name__}: {error}") from error
