"""Ctrl-C and a plain `kill`, also where a library passes over what Python raises for them.

A signal's exception comes up wherever the main thread happens to be: within a callback of Ray's it is lost, and the run
would go on to its end. So a signal is remembered, and raised again at the next place where a run looks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STATUS = 130  # as shells have it
PATIENCE_S = 5.0  # a second signal within it is the same one, sent to the group as well
_first: list[float] = []


def listen() -> None:
    """Take SIGINT, unless it is ignored, and SIGTERM. Only the main thread may; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a shell's background job
        signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _first:
        _first.append(time.monotonic())
        raise KeyboardInterrupt
    if time.monotonic() - _first[0] > PATIENCE_S:  # asked again: all that counts is on the disk
        leave()


def was_asked() -> bool:
    """Whether a signal came."""
    return bool(_first)


def look() -> None:
    """Raise KeyboardInterrupt where a signal came, however often it was raised before."""
    if _first:
        raise KeyboardInterrupt


@contextmanager
def contained() -> Iterator[None]:
    """For a caller that lives on after a run: its own handlers again, and a signal that came is over with it."""
    mine = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if mine else {}
    try:
        yield
    finally:
        _first.clear()
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)


def leave() -> NoReturn:
    """End this process at once: on a regular way out threads of Ray's may still crash it, and change its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STATUS)
