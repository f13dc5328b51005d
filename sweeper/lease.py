"""Who builds what: of several sweeps that share a store one builds an artifact, and the others wait for it.

    <uri>/pending/<key>.json       the owner of the build and the prefix below which its files lie so far
    <uri>/pending/<owner>.beat     rewritten every few seconds while the owner lives

A build that ends without its artifact leaves its note behind, without an owner, and the next one goes on with the files
below its prefix. An owner that dies is known by a beat that no longer changes, as watched on the watcher's own clock:
clocks of two machines differ, and either may jump. A lease saves work and decides nothing: where two build at once (one
of them was taken for dead, or an object store let both have it) `Store.commit` keeps the first.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from sweeper.errors import SweeperError
from sweeper.fingerprint import canonical_json
from sweeper.garbage import is_staged
from sweeper.store import Store

Tell = Callable[[str], None]  # one line for the user


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds: between two beats, without one until an owner counts as dead, and between two looks of who waits."""

    beat_s: float = 10.0
    stale_s: float = 60.0
    poll_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class _Note:
    """`owner` is empty where nobody builds and what was staged waits to be gone on with."""

    owner: str
    host: str
    pid: int
    machine: str  # boot and process namespace: where `pid` means something
    prefix: str | None

    @property
    def is_free(self) -> bool:
        return not self.owner or (self.machine == _machine() and not _is_alive(self.pid))


def untold(line: str) -> None:
    """For callers without a user."""


class Leases:
    """The leases that one driver holds; `hold` makes them and gives them back."""

    def __init__(self, store: Store, times: Times) -> None:
        self._store, self._times = store, times
        self._me = _Note(
            owner=f"owner-{secrets.token_hex(8)}",
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            prefix=None,
        )
        self._held: dict[str, _Note] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="sweeper-lease")

    @property
    def keys(self) -> set[str]:
        """What is held, and so still has to be built."""
        return set(self._held)

    def prefix(self, keys: Sequence[str]) -> str:
        """Where to stage the files of these artifacts: where all of them were left by an earlier build, or anew."""
        left = {self._held[key].prefix for key in keys}
        found = left.pop() if len(left) == 1 else None
        prefix = found if found is not None and is_staged(found) else self._store.staging()
        for key in keys:
            self._held[key] = replace(self._held[key], prefix=prefix)
            self._store.storage.write(_note_path(key), canonical_json(asdict(self._held[key])))
        return prefix

    def take(self, key: str, what: str, tell: Tell) -> None:
        """Wait until the artifact is there, or the right to build it is ours."""
        if not self._thread.is_alive():
            self._thread.start()
        storage, seen, since_s, told = self._store.storage, None, time.monotonic(), ""
        while self._store.get(key) is None:
            data = storage.read(_note_path(key))
            note = _decode(data)
            sign = (data, storage.read(_beat_path(note.owner)) if note and note.owner else None)
            if sign != seen:
                seen, since_s = sign, time.monotonic()
            is_stale = time.monotonic() - since_s >= self._times.stale_s
            if note is None or note.is_free or is_stale:
                mine = replace(self._me, prefix=note.prefix if note else None)
                if storage.swap(_note_path(key), data, canonical_json(asdict(mine))):
                    self._held[key] = mine
                    if note is not None and note.owner:
                        storage.delete(_beat_path(note.owner))
                    if self._store.get(key) is None:  # its last owner may have ended between the two looks
                        return
                    self._give_back(key)
                continue
            waiting = f"waiting for {note.host} (process {note.pid}) to build {what}"
            if waiting != told:
                told = waiting
                tell(waiting)
            time.sleep(self._times.poll_s)

    def release(self) -> None:
        """Give back what is held: a note goes with its artifact, or stays for whoever goes on."""
        self._stopped.set()
        for key in list(self._held):
            with suppress(SweeperError):  # then the note goes stale, which does as well
                self._give_back(key)
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)  # it may be waiting for a server that is away
            with suppress(SweeperError):
                self._store.storage.delete(_beat_path(self._me.owner))

    def _give_back(self, key: str) -> None:
        mine, storage = self._held.pop(key), self._store.storage
        note = _decode(storage.read(_note_path(key)))
        if note is None or note.owner != self._me.owner:
            return  # we were taken for dead
        if mine.prefix is None or self._store.get(key) is not None:
            storage.delete(_note_path(key))
        else:
            storage.write(_note_path(key), canonical_json(asdict(replace(mine, owner=""))))

    def _beat(self) -> None:
        number = 0
        while not self._stopped.is_set():
            with suppress(SweeperError):
                self._store.storage.write(_beat_path(self._me.owner), str(number).encode())
            number += 1
            self._stopped.wait(self._times.beat_s)


@contextmanager
def hold(store: Store, wanted: Mapping[str, str], tell: Tell, times: Times | None = None) -> Iterator[Leases]:
    """Hold the right to build what the store lacks of these artifacts; waits while another driver builds one.

    Do not hold in a block of another `hold`: two drivers might wait for each other.

    Args:
        wanted: what each artifact is, for people, by key.
        tell: is told for whom this one waits.
    """
    leases = Leases(store, times or Times())
    try:
        for key in sorted(wanted):  # one order for all drivers
            leases.take(key, wanted[key], tell)
        yield leases
    finally:
        leases.release()


def _note_path(key: str) -> str:
    return f"pending/{key}.json"


def _beat_path(owner: str) -> str:
    return f"pending/{owner}.beat"


def _decode(data: bytes | None) -> _Note | None:
    """None for no note, and for one that cannot be read: it is replaced."""
    try:
        return None if data is None else _Note(**json.loads(data))
    except (ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: no namespaces either
        return socket.gethostname()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
