"""What a crash, a loss of power or a copy does to the end of a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping


def torn(data: bytes, draw: random.Random) -> bytes:
    """Somewhere in its last line."""
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    return data[: draw.randrange(start, len(data))] if start < len(data) else data


def duplicated(data: bytes, draw: random.Random) -> bytes:
    """Its last lines stand there twice."""
    lines = data.splitlines(keepends=True)
    return data + b"".join(lines[-draw.randint(1, 3) :])


def garbage(data: bytes, draw: random.Random) -> bytes:
    """What a loss of power leaves in blocks that were never written."""
    return data + bytes(draw.randrange(1, 4096)) + draw.randbytes(draw.randrange(1, 200))


TAILS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "torn": torn,
    "duplicated": duplicated,
    "followed by garbage": garbage,
}
