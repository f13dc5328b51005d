"""What the user sees: header, progress, lanes and tables, in a terminal, through a pipe and under `--quiet`.

The only module besides the command line that knows rich. A terminal gets live displays that leave one line behind when
they end; a pipe gets plain lines without a control character, one at a stage's start and end and one a finished trial.
Nothing that is printed is read as markup: class names, paths and messages of exceptions are not ours; nor are secrets
in them shown. Rows come as
records (mappings with the column names of `results.COLUMNS`), so that this module stays below every other one.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TextIO

import rich.console
import rich.progress
from rich import box
from rich.cells import cell_len
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sweeper import tables
from sweeper.redact import redacted
from sweeper.tables import Record, TextTable, accuracy_text, cost_unit, duration, plain, significant
from sweeper.tally import Tally

PIPE_WIDTH = 120
_UNBOUNDED = rich.console.Console(width=10_000, force_terminal=False)  # only measures


def rich_table(table: TextTable, gap: int = 2) -> Table:
    """The cells with `gap` blanks between columns; figures are never wrapped, names are where the width ends."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    for header in table.headers:
        numeric = header in table.right
        made.add_column(Text(header), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, row))
    made.caption = Text(table.caption) if table.caption else None
    made.caption_justify = "left"
    return made


def _natural_width(table: TextTable, gap: int) -> int:
    return Measurement.get(_UNBOUNDED, _UNBOUNDED.options, rich_table(replace(table, caption=""), gap)).maximum


def fitted(table: TextTable, width: int) -> Table:
    """The roomiest layout within `width`: two blanks between columns, one, or long names over several lines."""
    for gap in (2, 1):
        if _natural_width(table, gap) <= width:
            return rich_table(table, gap)
    for name, separators in (("loss", "+"), ("student", "_./-"), ("teacher", "_./-")):
        excess = _natural_width(table, gap=1) - width
        if excess > 0 and name in table.headers:
            column = table.headers.index(name)
            room = max(cell_len(row[column]) for row in table.rows) - excess
            rows = tuple(
                (*row[:column], _broken(row[column], room, separators), *row[column + 1 :]) for row in table.rows
            )
            table = replace(table, rows=rows)
    return rich_table(table, gap=1)


def _broken(name: str, width: int, separators: str) -> str:
    """The name over lines of at most `width` where its separators allow it: `ce+kl+` and `align_uniform`."""
    lines = [""]
    for part in re.findall(f"[^{separators}]*[{separators}]|[^{separators}]+", name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def pareto_table(records: Sequence[Record], width: int = 80) -> Table:
    """The front as a table that fits in `width` columns; its caption says what the figures are."""
    return fitted(tables.pareto(records), width)


def ablation_table(records: Sequence[Record], width: int = 80) -> Table:
    """One line an arm of the ablation, with its gain over training from scratch."""
    return fitted(tables.ablation(records), width)


def runs_table(records: Sequence[Record]) -> Table:
    """`sweeper ls`: one line a run, from `results.list_runs`."""
    return rich_table(tables.runs(records))


class Stage:
    """A stage's counter: what has been done, out of `total` where that is known."""

    def __init__(self, total: int | None, show: Callable[[int, int | None], None]) -> None:
        self.done = 0
        self.total = total
        self._show = show

    def advance(self, count: int = 1) -> None:
        self.update(self.done + count)

    def update(self, done: int, total: int | None = None) -> None:
        self.done, self.total = done, self.total if total is None else total
        self._show(self.done, self.total)


class _Rate(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{significant(speed, 3)} {task.fields['unit']}/s" if speed else "")


class Console:
    """Everything that is printed passes here. `quiet` leaves only the Pareto table and errors."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, errors: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        self.quiet = quiet
        self._out, self._err = _rich(stream), _rich(errors or sys.stderr)
        self.live = stream.isatty() and not self._out.is_dumb_terminal and not quiet

    @property
    def width(self) -> int:
        return self._out.width

    def message(self, text: str = "", style: str = "") -> None:
        """A line (or several) for the user; never wrapped, so that paths and commands can be copied."""
        if not self.quiet:
            self._out.print(Text(plain(redacted(text)), style=style), soft_wrap=True)

    def header(self, lines: Sequence[str]) -> None:
        for number, line in enumerate(lines):
            self.message(line, style="" if number else "bold")

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
    def stage(self, name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
        """A progress bar with rate and time left while the block runs; one line with the seconds stays."""
        start = time.monotonic()
        amount = f"{total:,} {unit}" if total is not None else "started"
        counter = Stage(total, lambda done, total: None)
        try:
            if self.live:
                with _progress_bar(self._out) as bar:
                    task = bar.add_task(plain(name), total=total, unit=unit)
                    counter = Stage(total, lambda done, total: bar.update(task, completed=done, total=total))
                    yield counter
            else:
                self.message(f"{name}: {amount}")
                yield counter
        except BaseException:
            self.message(f"{name}: not finished, left after {duration(time.monotonic() - start)}")
            raise
        seconds = time.monotonic() - start
        rate = f" ({significant(counter.done / seconds, 3)}/s)" if counter.done and seconds > 0 else ""
        made = f"{counter.done:,} {unit}" if counter.done else "done"
        self.message(f"{name}: {made} in {duration(seconds)}{rate}")

    @contextmanager
    def lanes(self, num: int, total: int | None = None, device: str = "cpu") -> Iterator[LaneView]:
        """A line a lane and the search's summary while the block runs; the summary stays."""
        view = LaneView(self, num, total, device)
        try:
            if self.live:
                with Live(get_renderable=view.render, console=self._out, refresh_per_second=4, transient=True):
                    yield view
            else:
                yield view
        finally:
            self.message(f"search: {view.summary()}")


class LaneView:
    """State of the search as the user sees it; its methods may be called from any thread."""

    def __init__(self, console: Console, num: int, total: int | None, device: str) -> None:
        self._console = console
        self._num = num
        self._device = device
        self._lines: dict[int, tuple[int | None, str, int, int, float | None]] = {}
        self._tally = Tally(total)
        self._lock = threading.RLock()

    def update(self, lane: int, trial: int | None, label: str, epoch: int, epochs: int, accuracy: float | None) -> None:
        """What a lane does now; `trial=None`: it waits, and `label` may say for what."""
        with self._lock:
            self._num = max(self._num, lane + 1)  # nodes may join
            self._lines[lane] = (trial, label, epoch, epochs, accuracy)

    def earlier(self, records: Sequence[Record]) -> None:
        """Trials that an earlier session of this run finished: counted, not printed, and no part of the pace."""
        with self._lock:
            for record in records:
                self._tally.count(record["trial"], record["state"], record["accuracy_val"])
            self._tally.rebase()

    def finished(
        self, trial: int, state: str, label: str, accuracy: float | None, device_hours: float, error: str | None = None
    ) -> None:
        """A trial ended as completed, stopped or failed. A terminal prints only the failed ones, with their reason."""
        with self._lock:
            self._tally.count(trial, state, accuracy)
            position = self._tally.position()
        if self._console.live and state != "failed":
            return
        unit, factor = cost_unit([device_hours], self._device)
        score = "" if accuracy_text(accuracy) == "-" else f", accuracy {accuracy_text(accuracy)}"
        reason = f" ({' '.join(plain(error).split())})" if error else ""
        line = f"[{position}] trial {trial} {state}{reason}: {label}{score}"
        style = "red" if state == "failed" else ""
        self._console.message(f"{line}, {significant(device_hours * factor, 3)} {unit}", style=style)

    def progress(self, done: int, total: int | None, fraction: float | None = None) -> None:
        """Trials done out of `total`; `fraction` is the used share of a budget that is not counted in trials."""
        with self._lock:
            self._tally.progress(done, total, fraction)

    def summary(self) -> str:
        with self._lock:
            return self._tally.summary()

    def render(self) -> Table:
        """The lanes that fit on the screen, and the summary below them."""
        shown = min(self._num, max(1, self._console._out.height - 4))
        grid = Table.grid(padding=(0, 1), expand=True)
        for ratio, justify in ((None, "left"), (None, "left"), (1, "left"), (None, "right"), (None, "right")):
            grid.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio, justify=justify)  # type: ignore[arg-type]
        with self._lock:
            for lane in range(shown):
                trial, label, epoch, epochs, accuracy = self._lines.get(lane, (None, "starting", 0, 0, None))
                name = f"trial {trial}" if trial is not None else ""
                at = f"epoch {epoch}/{epochs}" if trial is not None else ""
                score = accuracy_text(accuracy) if trial is not None else ""
                grid.add_row(Text(f"lane {lane}", "dim"), name, Text(plain(label)), at, Text(score, "bold"))
        frame = Table.grid(expand=True)
        frame.add_row(grid)
        if shown < self._num:
            frame.add_row(Text(f"and {self._num - shown} more lanes", "dim"))
        frame.add_row(Text(self.summary(), "bold"))
        return frame


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


def _progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        _Rate(),
        rich.progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        transient=True,
    )
