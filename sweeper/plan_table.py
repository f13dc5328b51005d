"""A forecast as a table for people: what is made, of how much, in how many bytes, hours and dollars."""

from __future__ import annotations

from sweeper.forecast import CACHED, NO_DEVICE, Forecast, Row
from sweeper.tables import STAGE_TITLES, TextTable, bytes_text, duration, plain, significant


def plan_table(expected: Forecast) -> TextTable:
    """A row for each kind and name, and the total; without a price there is no column for dollars."""
    is_priced = expected.place.price is not None
    time = f"{expected.place.slot.processor} time"
    figures = ("samples", "bytes", time, "clock", *(["dollars"] if is_priced else []))
    rows = [_cells(row, expected, is_priced) for row in expected.rows]
    known = [row.bytes for row in expected.rows if row.bytes is not None and row.basis != CACHED]
    wall = _time(expected.wall_s)
    total = ("total", "", "", bytes_text(sum(known)), duration(expected.total), wall)
    rows.append((*total, *([_dollars(expected.total_dollars)] if is_priced else []), ""))
    headers = ("", "name", *figures, "by")
    return TextTable(headers, tuple(rows), frozenset(figures), caption=_caption(expected))


def _cells(row: Row, expected: Forecast, is_priced: bool) -> tuple[str, ...]:
    samples = "-" if row.samples is None else f"{row.samples:,} {row.unit}"
    has_none = row.kind not in STAGE_TITLES and not row.bytes
    size = "-" if has_none else "?" if row.bytes is None else bytes_text(row.bytes)
    is_cached = row.basis == CACHED
    seconds = "0" if is_cached else "-" if row.basis == NO_DEVICE else _time(row.seconds, "?")
    wall = "0" if is_cached else _time(row.wall_s, "?") if expected.lanes is not None else "-"
    cost = "0" if is_cached else "-" if row.basis == NO_DEVICE else _dollars(expected.dollars(row.seconds))
    name = (STAGE_TITLES.get(row.kind, row.kind), plain(row.name), samples, "0" if is_cached else size, seconds, wall)
    return (*name, *([cost] if is_priced else []), row.basis + row.note)


def _caption(expected: Forecast) -> str:
    place = expected.place
    lanes = "" if expected.lanes is None else f", {expected.lanes} lane{'s' if expected.lanes != 1 else ''}"
    said = f"On {plain(place.name)}{lanes}, {expected.basis}. The clock's total has the start of everything in it."
    if place.price is None:
        return f"{said} No price given: --price, dollars a device-hour, adds a column."
    head = f", and the head at ${significant(place.head_price, 3)} an hour" if place.head_price else ""
    return f"{said} Dollars: device time at ${significant(place.price, 3)} an hour{head}."


def _time(seconds: float | None, unknown: str = "-") -> str:
    return unknown if seconds is None else duration(seconds)


def _dollars(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}"
