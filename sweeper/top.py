"""`sweeper top RUN`: a run as its own terminal shows it, from another shell.

The driver keeps `status.json` in the run's folder (`status`); this draws what stands there, until the run ends or its
driver is gone. On the head of a cluster it finds what was submitted there; where it was submitted from, it reads the
copy in the store, which the head renews every few seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sweeper import archive, mirror, on_head, run_lock, status, submitted
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.results import RunFolder
from sweeper.status import Status
from sweeper.storage import Storage
from sweeper.submitted import Submission

LOOK_S = 0.5
STALE_S = 5.0  # a driver writes once a second: after so long without, its lock tells
STALE_COPY_S = 3 * mirror.EVERY_S


class Source(Protocol):
    """Where a run's status comes from; `go_on` and `show` say what to do once it has ended."""

    go_on: str
    show: str

    def read(self) -> Status | None:
        """The last one; None where none was written."""
        ...

    def is_driven(self) -> bool:
        """Whether a driver works on the run, as far as can be told."""
        ...


class Here:
    """A run whose folder is within reach."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.go_on = f"`sweeper run {folder.path / 'space.yaml'}` goes on with it"
        self.show = f"`sweeper show {folder.path}` shows its table"
        self._changed, self._at = -1, -STALE_S

    def read(self) -> Status | None:
        return status.read(self.folder.path / status.FILE)

    def is_driven(self) -> bool:
        """The lock is asked for at first, and whenever nothing is written for a while."""
        try:
            changed = (self.folder.path / status.FILE).stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        now, is_first = time.monotonic(), self._changed == -1
        if changed != self._changed:
            self._changed, self._at = changed, now
            if not is_first:
                return True
        return (not is_first and now - self._at < STALE_S) or run_lock.is_held(self.folder.path)


class There:
    """A submitted run, by its copy in the store."""

    def __init__(self, mine: Submission) -> None:
        self.mine = mine.labelled()
        self.go_on = "`sweeper submit` with the same file goes on with it"
        self.show = f"`sweeper attach {mine.name}` brings its table home"
        self._last: Status | None = None
        self._at, self._read_at = time.monotonic(), -STALE_COPY_S

    def read(self) -> Status | None:
        if time.monotonic() - self._read_at < mirror.EVERY_S / 4:
            return self._last
        self.mine, self._read_at = self.mine.labelled(), time.monotonic()
        run_id = self.mine.label.rpartition("/")[2]
        path = f"{self.mine.prefix}/results/{self.mine.space_name}/{run_id}/{status.FILE}"
        data = Storage(self.mine.store).read(path) if run_id else None
        found = None if data is None else status.parsed(data, path)
        if found != self._last:
            self._last, self._at = found, time.monotonic()
        return found

    def is_driven(self) -> bool:
        """Nobody holds a lock that could be asked for from here: who is silent for too long is gone."""
        return time.monotonic() - self._at < STALE_COPY_S


def follow(text: str, results: str, console: Console) -> None:
    """Draw a run until it ends, and say how it did; once where the output is no terminal.

    Raises:
        InputError: no such run, or something else lies where its status should be.
    """
    source = _find(text, results)
    now, is_driven = source.read(), source.is_driven()
    if now is None:
        console.message(_without_status(source, is_driven))
        return
    if console.live and now.state == status.RUNNING and is_driven:
        now = _watch(source, now, console)
        is_driven = source.is_driven()
    else:
        console.draw(now)
    if now.state != status.RUNNING or not is_driven:
        console.message(_how_it_ended(source, now))


def _find(text: str, results: str) -> Source:
    """A run that goes on here, one that was submitted from here, any other here, or one that this head was given."""
    here, unknown = None, InputError("")
    try:
        here = archive.find_run(results, text)
    except InputError as error:
        unknown = error
    if here is not None and run_lock.is_held(here.path):
        return Here(here)
    mine = submitted.find(results, text)
    if mine is not None and not mine.is_home:
        return There(mine)
    if here is not None:
        return Here(here)
    for head in sorted((Path.home() / on_head.FOLDER).glob("*/results")):
        runs = archive.list_runs(head)
        if runs and head.parent.name == text:
            return Here(runs[-1])
        with suppress(InputError):
            return Here(archive.find_run(head, text))
    raise unknown


def _watch(source: Source, first: Status, console: Console) -> Status:
    """Draw it until it ends, or its driver does, or the user has seen enough; what it prints scrolls by above."""
    now = first
    with suppress(KeyboardInterrupt), console.drawn(lambda: now, is_kept=True):
        while now.state == status.RUNNING and source.is_driven():
            time.sleep(LOOK_S)
            before, now = now, source.read() or now
            new = now.num_lines - before.num_lines
            for line in now.lines[-new:] if new > 0 else ():
                console.message(line)
    return now


def _without_status(source: Source, is_driven: bool) -> str:
    if isinstance(source, There):
        return f"{source.mine.name} has not begun yet, as far as the store knows"
    if isinstance(source, Here) and source.folder.finished:
        return f"finished; {source.show}"
    return "it has said nothing yet; look again in a moment" if is_driven else f"nobody works on it: {source.go_on}"


def _how_it_ended(source: Source, now: Status) -> str:
    kept = f"everything finished is kept: {source.go_on}"
    return {
        status.RUNNING: f"nobody works on it any more: its driver was killed, or its machine went down; {kept}",
        status.FINISHED: f"finished; {source.show}",
        status.INTERRUPTED: f"interrupted; {kept}",
    }.get(now.state, f"failed; {kept}")
