"""A folder kept in the store as it grows, so that what a machine wrote outlives the machine.

A submitted run's driver works on the cluster's head, and its journal, retrainings and tables lie on the head's disk. A
copy below one prefix of the store is what a new head goes on from, and what the results come home by.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeper.errors import RunFailed, SweeperError
from sweeper.files import write_atomically
from sweeper.record import stays_below
from sweeper.storage import Storage

EVERY_S = 20.0  # what a lost machine costs of the journal, at most
# A copy is not of one moment. Rungs first: what they say of a trial, the journal, read later, knows as well. The marker
# of a finished run last, as its writer does it.
_FIRST, _LAST = "rungs.jsonl", "done.json"


class Mirror:
    """Files of `folder` below `prefix` of a store. Hidden ones (scratch, locks, halves) stay where they are."""

    def __init__(self, storage: Storage, prefix: str, folder: Path) -> None:
        self.storage, self.prefix, self.folder = storage, prefix, folder
        self._sent: dict[str, tuple[int, int]] = {}  # bytes and time of change of what the store has from here
        self._lock = threading.Lock()

    def push(self) -> None:
        """Copy what is new or has changed since the last time, and delete what has gone."""
        with self._lock:
            there = dict(self._files())
            for name in sorted(there, key=_order):
                if self._sent.get(name) == there[name]:
                    continue
                with suppress(FileNotFoundError):  # replaced by its writer at this moment: the next time has it
                    self.storage.write(f"{self.prefix}/{name}", (self.folder / name).read_bytes())
                    self._sent[name] = there[name]
            for name in self._sent.keys() - there.keys():
                self.storage.delete(f"{self.prefix}/{name}")
                del self._sent[name]

    def pull(self, *, replace: bool) -> list[str]:
        """Copy what the store has into the folder; returns the names of its files.

        Args:
            replace: over what lies in the folder, too; else only what is missing there.

        Raises:
            RunFailed: a name in the store that is none of a file below the folder.
        """
        names = sorted(self.storage.files(self.prefix, deep=False), key=_order)
        strange = [name for name in names if not stays_below(name)]
        if strange:
            raise RunFailed(f"store: {self.storage.uri} holds {strange[0]!r} below {self.prefix}, no name of a file")
        for name in names:
            if replace or not (self.folder / name).exists():
                data = self.storage.read(f"{self.prefix}/{name}")
                if data is not None:
                    write_atomically(self.folder / name, data)
        return names

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Push every few seconds while the block runs, and at its end, however it ends.

        Raises:
            SweeperError: the store could not be written at the end of a block that had ended well.
        """
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(EVERY_S):
                with suppress(SweeperError, OSError):  # an outage: the next time, or the end, makes up for it
                    self.push()

        thread = threading.Thread(target=work, daemon=True, name="sweeper-mirror")
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            with suppress(SweeperError, OSError):  # the block's own error is the one to tell
                self.push()
            raise
        ended.set()
        self.push()

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for place, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                path = Path(place, file)
                if not file.startswith("."):
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        yield path.relative_to(self.folder).as_posix(), (status.st_size, status.st_mtime_ns)


def _order(name: str) -> tuple[bool, bool, str]:
    """Of copying: rungs, everything else, markers."""
    return name.endswith(_LAST), not name.endswith(_FIRST), name
