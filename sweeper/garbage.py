"""What lies in a store and nothing refers to: files of builds that never ended, and notes of builders long gone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sweeper.record import Record
from sweeper.storage import Storage

GRACE_S = 24 * 3600.0


@dataclass(frozen=True)
class Garbage:
    """What `gc` removes: a path relative to the store and its size."""

    path: str
    bytes: int


def is_staged(prefix: str) -> bool:
    """Whether `Store.staging` could have given this prefix."""
    try:
        number = uuid.UUID(prefix.removeprefix("data/"))
    except ValueError:
        return False
    return prefix == f"data/{number}" and number.version == 7


def collect(storage: Storage, records: Callable[[], Iterable[Record]], grace_s: float) -> list[Garbage]:
    """Everything of ours that no record refers to and that is older than `grace_s`, by path. Deletes nothing.

    A build that a live builder holds, or that waits to be gone on with, is as young as its note in `pending/`.
    """
    horizon_ns = time.time_ns() - int(grace_s * 1e9)
    # Files before records: a prefix that is committed in between is then seen as referenced. All at once, because
    # Google's filesystem lists files and no folders.
    staged: dict[str, list[Any]] = {}
    start = len(storage.path("data")) + 1
    for info in storage.listing("data", recursive=True):
        files = staged.setdefault(f"data/{info.path[start:].partition('/')[0]}", [])
        files += [info] if info.is_file else []
    notes = [info for info in storage.listing("pending") if info.is_file]
    young = b"\n".join(
        storage.read(f"pending/{info.base_name}") or b"" for info in notes if info.mtime_ns > horizon_ns
    ).decode(errors="replace")
    used: dict[str, set[str]] = {}
    for record in records():
        used.setdefault(record.prefix, set()).update(entry.name for entry in record.files)
    garbage: list[Garbage] = []
    for prefix, files in staged.items():
        if not is_staged(prefix) or prefix in young:
            continue
        if prefix in used:  # a rival that was taken for dead may have written more files than the record's
            start = len(storage.path(prefix)) + 1
            unused = [info for info in files if info.path[start:] not in used[prefix] and info.mtime_ns <= horizon_ns]
            garbage += [Garbage(f"{prefix}/{info.path[start:]}", info.size) for info in unused]
        else:
            born_ns = (uuid.UUID(prefix.removeprefix("data/")).int >> 80) * 1_000_000
            if max([born_ns, *(info.mtime_ns for info in files)]) <= horizon_ns:
                garbage.append(Garbage(prefix, sum(info.size for info in files)))
    garbage += _old("pending", notes, ("json", "beat", "part"), horizon_ns)
    garbage += _old("records", storage.listing("records"), ("tmp",), horizon_ns)  # a writer's that died just before
    return sorted(garbage, key=lambda item: item.path)


def _old(folder: str, infos: Iterable[Any], extensions: tuple[str, ...], horizon_ns: int) -> list[Garbage]:
    return [
        Garbage(f"{folder}/{info.base_name}", info.size)
        for info in infos
        if info.is_file and info.extension in extensions and info.mtime_ns <= horizon_ns
    ]
