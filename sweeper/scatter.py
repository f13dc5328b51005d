"""Accuracy against device-hours in characters: the front as a staircase, and what it beats as dots.

plotext was looked at for it and left: it keeps one figure a process, colours whatever it is told, and frames it with
characters that a terminal without UTF-8 has not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sweeper.status import Point
from sweeper.tables import accuracy_text, cost_unit, significant

MARGIN = 7  # of the labels of the accuracy: `0.947 |`
LEAST_WIDTH, LEAST_HEIGHT = 40, 6
LEAST_SPAN = 0.01  # of accuracies: less is no difference that a picture should show


class Glyphs(NamedTuple):
    """What a picture is drawn with."""

    front: str
    dot: str
    level: str
    rise: str
    corner: str
    axis: str
    tick: str
    origin: str
    dots: str


UNICODE = Glyphs("●", "·", "─", "│", "┘", "│", "┤", "└", "…")
ASCII = Glyphs("O", ".", "-", "|", "+", "|", "+", "+", "...")


def scatter(points: Sequence[Point], device: str, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[str]:
    """`height` lines of `width` columns; none where there is nothing to show, or no room.

    Args:
        device: of the trainings; unit and scale of the costs, whose axis is logarithmic, are as in the Pareto table.
    """
    shown = [point for point in points if point.hours > 0]
    if not shown or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return []
    unit, factor = cost_unit([point.hours for point in shown], device)
    costs, accuracies = [math.log(point.hours) for point in shown], [point.accuracy for point in shown]
    (left, right), (low, high) = _ends(costs, 0.1), _ends(accuracies, LEAST_SPAN)
    canvas = _Canvas(width - MARGIN, height - 2)

    def place(point: Point) -> tuple[int, int]:
        column = round((math.log(point.hours) - left) / (right - left) * (canvas.width - 1))
        return round((high - point.accuracy) / (high - low) * (canvas.height - 1)), column

    for point in shown:
        canvas.put(*place(point), glyphs.dot)
    front = sorted({place(point) for point in shown if point.is_on_front}, key=lambda cell: (cell[1], -cell[0]))
    canvas.stairs(front, glyphs)
    middle = (canvas.height - 1) // 2
    values = {0: high, middle: high - middle / (canvas.height - 1) * (high - low), canvas.height - 1: low}
    lines = [f"val accuracy by {unit}: {glyphs.front} front, {glyphs.dot} beaten"]
    for row, cells in enumerate(canvas.rows):
        label = f"{accuracy_text(values[row])} {glyphs.tick}" if row in values else f"{'':5} {glyphs.axis}"
        lines.append(label + "".join(cells))
    ticks = [significant(factor * math.exp(cost), 3) for cost in (left, (left + right) / 2, right)]
    lines.append(f"{'':6}{glyphs.origin}{_axis(ticks, unit, canvas.width, glyphs.level)}")
    return [line[:width].ljust(width) for line in lines]


def _ends(values: Sequence[float], least: float) -> tuple[float, float]:
    """The range of the values, widened where it is too small for a scale."""
    low, high = min(values), max(values)
    more = max(0.0, least - (high - low)) / 2
    return low - more, high + more


def _axis(ticks: Sequence[str], unit: str, width: int, line: str) -> str:
    """`1.20 ──────── 3.60 ──────── 10.8 CPU-s`: the ends, and between them the middle of the logarithm."""
    first, middle, last = ticks[0], f" {ticks[1]} ", f" {ticks[2]} {unit}"
    text = f"{first} ".ljust((width - len(middle)) // 2, line) + middle
    return text.ljust(width - len(last), line) + last


class _Canvas:
    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [[" "] * width for _ in range(height)]

    def put(self, row: int, column: int, glyph: str) -> None:
        self.rows[row][column] = glyph

    def stairs(self, front: Sequence[tuple[int, int]], glyphs: Glyphs) -> None:
        """What the front reaches at every cost: level from each of its points to the next, and up there."""
        for (row, column), (above, until) in zip(front, [*front[1:], (None, self.width)], strict=True):
            for at in range(column + 1, until):
                self.put(row, at, glyphs.level)
            if above is not None and above < row:
                self.put(row, until, glyphs.corner if until > column else glyphs.rise)
                for between in range(above + 1, row):
                    self.put(between, until, glyphs.rise)
        for row, column in front:
            self.put(row, column, glyphs.front)
