"""Tables of text laid out for a terminal: what fits is never cut, and figures are never wrapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import rich.console
from rich import box
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sweeper import tables
from sweeper.tables import Record, TextTable

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
