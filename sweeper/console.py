"""What the user sees: header, progress, lanes and tables, in a terminal, through a pipe and under `--quiet`.

A terminal gets a live display of the run's status (`display`), above which what is printed scrolls by; a pipe gets
plain lines without a control character, one at a stage's start and end and one a finished trial. Nothing that is
printed is read as markup: class names, paths and messages of exceptions are not ours; nor are secrets in them shown.
Rows come as records (mappings with the column names of `results.COLUMNS`), so that this module stays below every other
one.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import rich.console
from rich.text import Text

from sweeper import screen, status
from sweeper.display import Display
from sweeper.errors import users_error
from sweeper.layout import ablation_table, pareto_table
from sweeper.monitor import Monitor
from sweeper.redact import redacted
from sweeper.stage import Stage
from sweeper.status import Status
from sweeper.tables import Record, accuracy_text, cost_unit, duration, plain, significant
from sweeper.wording import HARD_SPACE

PIPE_WIDTH = 120
HEADER_INDENT = 13
NO_LIMIT = 1_000  # lines of a screen that is printed once


class Console:
    """Everything that is printed passes here. `quiet` leaves only the Pareto table and errors."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, errors: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        self.quiet = quiet
        self._out, self._err = _rich(stream), _rich(errors or sys.stderr)
        self.live = stream.isatty() and not self._out.is_dumb_terminal and not quiet
        self.monitor = Monitor()
        self._is_drawn = False

    @property
    def width(self) -> int:
        return self._out.width

    def message(self, text: str = "", style: str = "") -> None:
        """A line (or several) for the user; never wrapped, so that paths and commands can be copied."""
        if text:
            self.monitor.say(text)
        if not self.quiet:
            self._out.print(Text(plain(redacted(text)), style=style), soft_wrap=True)

    def header(self, lines: Sequence[str]) -> None:
        """A title, and lines of `name  text`, whose texts go on in their own column."""
        title, *rest = lines
        self.message(title, style="bold")
        for line in rest:
            parts = textwrap.wrap(line, max(self.width, 2 * HEADER_INDENT), subsequent_indent=" " * HEADER_INDENT)
            self.message("\n".join(parts).replace(HARD_SPACE, " "))

    def error(self, text: object) -> None:
        self._err.print(Text.assemble(("error: ", "bold red"), plain(redacted(str(text)))), soft_wrap=True)

    def table(self, records: Sequence[Record]) -> None:
        """The Pareto table, under `quiet` too."""
        self._out.print(pareto_table(records, self.width))

    def ablation(self, records: Sequence[Record]) -> None:
        self.show(ablation_table(records, self.width))

    def show(self, renderable: rich.console.RenderableType) -> None:
        if not self.quiet:
            self._out.print(renderable)

    @contextmanager
    def run(self, folder: Path) -> Iterator[Monitor]:
        """A run in `folder` while the block works: drawn here, and kept in its folder for `sweeper top`."""
        self.monitor = monitor = Monitor()
        with status.written(monitor.status, folder / status.FILE), self.drawn(monitor.status):
            try:
                yield monitor
            except BaseException as error:
                monitor.end(*_end_of(error))
                raise
            monitor.end(status.FINISHED)

    @contextmanager
    def drawn(self, look: Callable[[], Status], *, is_kept: bool = False) -> Iterator[None]:
        """Draw a status below what is printed while the block works, in a terminal."""
        if not self.live or self._is_drawn:
            yield
            return
        self._is_drawn = True
        try:
            with Display(self._out, look, is_kept=is_kept):
                yield
        finally:
            self._is_drawn = False

    def draw(self, now: Status) -> None:
        """A status once, as tall as it likes to be."""
        for line in screen.render(now, self.width, NO_LIMIT, ascii_only=self._out.options.ascii_only):
            self._out.print(line)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
        """A stage's counter while the block runs; one line with the seconds stays."""
        start = time.monotonic()
        with self.drawn(self.monitor.status), self.monitor.stage(name, total, unit) as counter:
            if not self.live:
                self.message(f"{name}: {f'{total:,} {unit}' if total is not None else 'started'}")
            try:
                yield counter
            except BaseException:
                self.message(f"{name}: not finished, left after {duration(time.monotonic() - start)}")
                raise
            seconds = time.monotonic() - start
            new = counter.done - counter.found
            rate = f" ({significant(new / seconds, 3)}/s)" if new and seconds > 0 else ""
            made = f"{counter.done:,} {unit}" if counter.done else "done"
            self.message(f"{name}: {made} in {duration(seconds)}{rate}")

    @contextmanager
    def search(self, total: int | None = None, device: str = "cpu") -> Iterator[Search]:
        """The search while the block runs; a line with its score stays."""
        with self.drawn(self.monitor.status), self.monitor.search(total, device):
            try:
                yield Search(self, device)
            finally:
                self.message(f"search: {self.monitor.summary()}")


class Search:
    """Trials of the search as the user sees them end; its methods may be called from any thread."""

    def __init__(self, console: Console, device: str) -> None:
        self._console, self._device = console, device

    def earlier(self, records: Iterable[Record]) -> None:
        """Trials that an earlier session of this run finished: counted, not printed, and no part of the pace."""
        self._console.monitor.earlier((r["trial"], r["state"], r["accuracy_val"], r.get("error")) for r in records)

    def finished(
        self, trial: int, state: str, label: str, accuracy: float | None, device_hours: float, error: str | None = None
    ) -> None:
        """A trial ended as completed, stopped or failed. A terminal prints only the failed ones, with their reason."""
        position = self._console.monitor.trial(trial, state, accuracy, error)
        if self._console.live and state != "failed":
            return
        unit, factor = cost_unit([device_hours], self._device)
        score = "" if accuracy_text(accuracy) == "-" else f", accuracy {accuracy_text(accuracy)}"
        reason = f" ({' '.join(plain(error).split())})" if error else ""
        line = f"[{position}] trial {trial} {state}{reason}: {label}{score}"
        style = "red" if state == "failed" else ""
        self._console.message(f"{line}, {significant(device_hours * factor, 3)} {unit}", style=style)


def _end_of(error: BaseException) -> tuple[str, str]:
    """How a run ended that raised it."""
    if isinstance(error, KeyboardInterrupt):
        return status.INTERRUPTED, ""
    known = users_error(error)
    return status.FAILED, str(known) if known is not None else f"{type(error).__name__}: {error}"


def _rich(stream: TextIO) -> rich.console.Console:
    """A rich console on `stream` that colours terminals only, whatever FORCE_COLOR says: a pipe stays plain text."""
    terminal = stream.isatty()
    if not (stream.encoding or "utf-8").lower().startswith("utf") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a class name in another alphabet must not end the run
    width = None if terminal or "COLUMNS" in os.environ else PIPE_WIDTH
    return rich.console.Console(
        file=stream,
        force_terminal=terminal,
        force_jupyter=False,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
    )
