"""Ends a process whose trial says nothing any more, so that it is started again and goes on from its checkpoint."""

from __future__ import annotations

import faulthandler
import statistics
import time

STALL_FACTOR = 10.0
STALL_S = 60.0
STDERR = 2


class Watchdog:
    """Expects a sign of life within `STALL_FACTOR` times the median of the times between those before, or `least_s`.

    Where it does not come, what every thread was doing goes to stderr and the process exits with status 1. The clock is
    a C thread of `faulthandler`, so that a call which hangs without ever returning to Python is seen too. It does not
    run before the first sign: nobody knows then how long an epoch takes.
    """

    def __init__(self, least_s: float = STALL_S) -> None:
        self.least_s = least_s
        self.last = time.monotonic()
        self.between: list[float] = []

    def alive(self) -> None:
        """The trial has ended an epoch."""
        now = time.monotonic()
        self.between.append(now - self.last)
        self.last = now
        limit = max(self.least_s, STALL_FACTOR * statistics.median(self.between))
        faulthandler.dump_traceback_later(limit, exit=True, file=STDERR)

    def off(self) -> None:
        """The trial has ended."""
        faulthandler.cancel_dump_traceback_later()
