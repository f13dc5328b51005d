"""Draws the status of a run within so many columns and lines: one pure function, for its own terminal and for others.

Each line is one line, whatever stands in it: names are cut, columns that have no room are left out, and so are lines of
less use. Nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from sweeper import scatter, status
from sweeper.status import LaneStatus, StageStatus, Status
from sweeper.tables import STAGE_TITLES, accuracy_text, bytes_text, cost_unit, duration, plain, significant
from sweeper.tally import score

NARROW = 78  # columns that stages and lanes take
WIDE = 120  # from which on the front stands beside them
SHORT = 16  # lines below which one cause of failures has to do
MOST_PICTURE, MOST_WIDTH = 18, 100  # lines and columns of the front
MOST_CAUSES = 3
LEAST_LABEL = 8  # columns of what a lane trains
GAP = "  "
SECONDS_PER_HOUR = 3600.0
STYLES = {status.WORKING: "bold", status.WAITING: "dim", status.LEFT: "yellow"}
MARKS = {status.WORKING: ">", status.LEFT: "!"}


class Line(NamedTuple):
    """One line, and the style of all of it."""

    text: str
    style: str = ""


def render(now: Status, width: int, height: int, *, ascii_only: bool = False) -> list[Text]:
    """The status as at most `height` lines of at most `width` columns each."""
    glyphs = scatter.ASCII if ascii_only else scatter.UNICODE
    draw = _wide if width >= WIDE and now.points else _narrow
    return draw(now, width, height, glyphs)[:height]


def _narrow(now: Status, width: int, height: int, glyphs: scatter.Glyphs) -> list[Text]:
    """All below each other: first what can not be missed, then lanes, then stages that are over, then the front."""
    least = scatter.LEAST_HEIGHT if now.points and width >= scatter.LEAST_WIDTH else 0
    above = _above(now, width, height, least, glyphs)
    picture = _picture(now, width, min(height - len(above), MOST_PICTURE), glyphs) if least else []
    return [*(_text(line, width, glyphs) for line in above), *picture]


def _wide(now: Status, width: int, height: int, glyphs: scatter.Glyphs) -> list[Text]:
    """The front on the right of all but head and score, with what 80 columns do not take."""
    right = min(width - NARROW - len(GAP), MOST_WIDTH)
    left = width - right - len(GAP)
    head = [*_head(now, width), *_score(now)]
    body = _above(now, left, height, 0, glyphs)[len(head) :]
    picture = _picture(now, right, min(height - len(head), max(MOST_PICTURE, len(body))), glyphs)
    beside = [_text(line, left, glyphs) for line in [*body, *[Line("")] * (len(picture) - len(body))]]
    for line, front in zip(beside, picture, strict=False):
        line.append(" " * (left + len(GAP) - line.cell_len)).append_text(front)
    return [*(_text(line, width, glyphs) for line in head), *beside]


def _above(now: Status, width: int, height: int, picture: int, glyphs: scatter.Glyphs) -> list[Line]:
    """Head, stages, score, failures and lanes in the lines that a picture of at least so many leaves."""
    head, stages = _head(now, width), _stages(now, width)
    causes = _causes(now)[: 1 if height < SHORT else MOST_CAUSES + 1]
    working = [line for line, stage in zip(stages, now.stages, strict=True) if stage.state == status.WORKING]
    told = _score(now)
    rest = height - len(head) - len(working) - len(told) - len(causes)
    fewest = min(len(now.lanes), 2)
    if rest - fewest >= picture:
        rest -= picture
    room = max(fewest, min(len(now.lanes), rest))
    if rest - room < len(stages) - len(working):
        stages = working
    return [*head, *told, *stages, *causes, *_lanes(now.lanes, room, width, glyphs)]


def _head(now: Status, width: int) -> list[Line]:
    clock = f"{now.state} {'' if now.state == status.RUNNING else 'after '}{duration(now.seconds)}"
    if now.seconds_left:
        clock += f", about {duration(now.seconds_left)} left"
    name = f"sweeper {_plain(now.label)}".rstrip()
    room = width - cell_len(clock) - len(GAP)
    lines = [Line(f"{set_cell_size(name, room)}{GAP}{clock}" if room >= cell_len(name) else clock, "bold")]
    if now.reason:
        lines.append(Line(_plain(now.reason), "red"))
    scale = _Scale.of(now)
    spent = f"spent {scale.text(now.spent_s)} {scale.unit}"
    if now.forecast_s is not None:
        spent += f" of {scale.text(now.forecast_s)} forecast"
        spent += f" ({now.spent_s / now.forecast_s:.0%})" if now.forecast_s else ""
    if now.dollars is not None:
        spent += f", ${now.dollars:,.2f}"
        spent += f" of ${now.forecast_dollars:,.2f}" if now.forecast_dollars is not None else ""
    return [*lines, Line(spent)]


class _Scale(NamedTuple):
    """Of device time: one for the whole screen."""

    unit: str
    factor: float
    places: int

    @classmethod
    def of(cls, now: Status) -> _Scale:
        most = max(now.spent_s, now.forecast_s or 0.0)
        unit, factor = cost_unit([most / SECONDS_PER_HOUR], now.device)
        factor /= SECONDS_PER_HOUR
        return cls(unit, factor, len(significant(most * factor, 3).partition(".")[2]))

    def text(self, seconds: float) -> str:
        return f"{seconds * self.factor:.{self.places}f}"


def _stages(now: Status, width: int) -> list[Line]:
    scale = _Scale.of(now)
    rows = [_stage_cells(stage, scale) for stage in now.stages]
    styles = [STYLES.get(stage.state, "") for stage in now.stages]
    texts = _columns(rows, _widths(rows, width, drop=(3, 2, 5)), right={2, 3, 4, 5})
    return [Line(text, style) for text, style in zip(texts, styles, strict=True)]


def _stage_cells(stage: StageStatus, scale: _Scale) -> list[str]:
    """Name, amount, rate, bytes, clock, and device time over its forecast, in the unit of the head."""
    amount = stage.state
    if stage.done or stage.total is not None:
        of = f"/{stage.total:,}" if stage.total is not None and stage.state != status.DONE else ""
        amount = f"{stage.done:,}{of} {_plain(stage.unit)}"
    clock = "" if stage.state == status.WAITING else duration(stage.seconds)
    if stage.seconds_left is not None:
        clock = f"{duration(stage.seconds_left)} left"
    spent = scale.text(stage.spent_s) if stage.spent_s or stage.forecast_s else ""
    if stage.forecast_s:
        spent += f"/{scale.text(stage.forecast_s)}"
    return [
        f"{MARKS.get(stage.state, ' ')} {STAGE_TITLES.get(stage.kind, _plain(stage.kind))}",
        amount,
        _rate(stage.rate),
        bytes_text(stage.bytes) if stage.bytes else "",
        clock,
        f"{spent} {scale.unit.rpartition('-')[2]}" if spent else "",
    ]


def _rate(rate: float | None) -> str:
    """`512/s`, `12.5/min` or `3.20/h`: the first that is at least one."""
    if not rate:
        return ""
    seconds, unit = next((s, unit) for s, unit in ((1, "s"), (60, "min"), (3600, "h")) if rate * s >= 1 or unit == "h")
    return f"{significant(rate * seconds, 3)}/{unit}"


def _score(now: Status) -> list[Line]:
    if now.trials is None:
        return []
    found = f", hypervolume {significant(now.hypervolume, 3)}" if now.hypervolume is not None else ""
    return [Line(score(now.trials) + found, "bold")]


def _causes(now: Status) -> list[Line]:
    """Why trials failed, the most frequent cause first."""
    if now.trials is None or not now.trials.failed:
        return []
    shown = now.trials.causes[:MOST_CAUSES]
    others = now.trials.failed - sum(cause.count for cause in shown)
    lines = [Line(f"failed {cause.count} x: {_plain(cause.text)}", "red") for cause in shown]
    return [*lines, *([Line(f"failed {others} x: other causes", "red")] if others else [])]


def _lanes(lanes: Sequence[LaneStatus], height: int, width: int, glyphs: scatter.Glyphs) -> list[Line]:
    rows, num_shown = [], height if len(lanes) <= height else height - 1
    for one in lanes[:num_shown]:
        doing = [f"epoch {one.epoch}/{one.epochs}", accuracy_text(one.accuracy)] if one.epochs else ["", ""]
        busy = f"{one.busy:.0%} busy" if one.busy is not None else ""
        rows.append([f"lane {one.lane}", _plain(one.job), _plain(one.label), *doing, busy])
    widths = _widths(rows, width, drop=(5, 0, 4), flexible=2)
    for row in rows:
        row[2] = _cut(row[2], widths.get(2, 0), glyphs)
    lines = [Line(text) for text in _columns(rows, widths, right={3, 4, 5})]
    rest = len(lanes) - num_shown
    return [*lines, *([Line(f"and {rest} more lanes", "dim")] if rest else [])]


def _picture(now: Status, width: int, height: int, glyphs: scatter.Glyphs) -> list[Text]:
    """Without blanks at the ends, which a terminal that becomes narrower would break into lines of their own."""
    lines = scatter.scatter(now.points, now.device, width, height, glyphs)
    made = [Text(line.rstrip(), no_wrap=True, overflow="crop") for line in lines]
    for line in made:
        line.highlight_words([glyphs.front], "bold green")
    return made


def _widths(
    rows: Sequence[Sequence[str]], width: int, *, drop: Sequence[int], flexible: int | None = None
) -> dict[int, int]:
    """By column: without those that are empty and, in the order of `drop`, those without room.

    Args:
        flexible: a column that takes what the others leave, and may be cut.
    """
    widths = {i: max(map(cell_len, column)) for i, column in enumerate(zip(*rows, strict=True)) if any(column)}
    least = {i: min(size, LEAST_LABEL) if i == flexible else size for i, size in widths.items()}
    for i in drop:
        if _sum(least) > width:
            widths.pop(i, None)
            least.pop(i, None)
    if flexible in widths:
        widths[flexible] = least[flexible] + max(0, width - _sum(least))
    return widths


def _columns(rows: Sequence[Sequence[str]], widths: Mapping[int, int], right: Collection[int]) -> list[str]:
    return [GAP.join(_aligned(row[i], size, i in right) for i, size in widths.items()).rstrip() for row in rows]


def _sum(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + len(GAP) * max(0, len(widths) - 1)


def _aligned(cell: str, width: int, is_right: bool) -> str:
    return " " * (width - cell_len(cell)) + cell if is_right else set_cell_size(cell, width)


def _plain(text: str) -> str:
    """What a file may hold, as one line."""
    return " ".join(plain(text).split())


def _cut(text: str, width: int, glyphs: scatter.Glyphs) -> str:
    """With dots where its end has no room."""
    dots = glyphs.dots[: max(0, width)]
    return text if cell_len(text) <= width else set_cell_size(text, width - len(dots)) + dots


def _text(line: Line, width: int, glyphs: scatter.Glyphs) -> Text:
    return Text(no_wrap=True, overflow="crop").append(_cut(line.text, width, glyphs), line.style)
