"""A real pseudo-terminal with a program in it, and what stands on its screen (pyte, a terminal in Python)."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyte
from command_line import PATIENCE_S, environment

LEFT_OUT = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"}


class Terminal:
    """Runs Python in a terminal of so many columns and rows; `raw` is every byte that it got."""

    def __init__(
        self, folder: Path, columns: int, rows: int, *arguments: str, more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._own, theirs = os.openpty()
        self.screen, self.raw = pyte.HistoryScreen(columns, rows, history=1000), b""
        self._stream = pyte.ByteStream(self.screen)
        self._set_size(columns, rows)
        kept = {name: value for name, value in environment().items() if name not in LEFT_OUT}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", **more},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        os.close(theirs)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without the blanks at the ends."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def printed(self) -> list[str]:
        """What scrolled out at the top, and then the screen."""
        gone = ["".join(row[at].data for at in range(self.screen.columns)).rstrip() for row in self.screen.history.top]
        return [*gone, *self.lines]

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def until(self, what: Callable[[Sequence[str]], object]) -> Sequence[str]:
        """The lines of the screen as soon as they satisfy `what`."""
        deadline = time.monotonic() + PATIENCE_S
        while not what(self.lines):
            assert self._read(), f"the program ended:\n{self.text}"
            assert time.monotonic() < deadline, f"it did not happen in time:\n{self.text}"
        return self.lines

    def after(self, count: int) -> None:
        """Read at least so many more bytes."""
        drawn = len(self.raw) + count
        self.until(lambda lines: len(self.raw) >= drawn)

    def finish(self) -> int:
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def _read(self) -> bool:
        """What comes within a moment; False at the end."""
        if not select.select([self._own], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._own, 65536)
        except OSError:  # as Linux says that the other end is closed
            data = b""
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
