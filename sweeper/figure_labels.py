"""Names beside the points that they are of, each where it covers the least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_ANGLES = (150, 120, 180, 210, 330, 30, 90, 270, 300, 60, 240, 0)  # up and to the left of a staircase is mostly free
_RADII = (7, 10, 14, 19, 25, 32, 40, 49, 59, 70)  # points
_MARGIN = 3  # pixels around a label
_LEFT_OF = {"left": 0.0, "center": 0.5, "right": 1.0}  # share of a label that lies left of where it is held
_Point = tuple[float, float]


def place(
    axes: Axes, labels: Sequence[tuple[_Point, str]], others: Sequence[_Point], stairs: Sequence[_Point]
) -> list[Bbox]:
    """Greedy, from the top: each label the nearest place that covers no other, no labelled point and no edge.

    Args:
        axes: laid out already: labels are placed by their size on the paper.
        labels: points and what stands beside each.
        others: points, and stairs: corners of a line, that had better not be covered.

    Returns:
        The boxes that they fill, in pixels.
    """
    taken: list[Bbox] = []
    points = [axes.transData.transform(point) for point, _ in labels]
    corners = [axes.transData.transform(point) for point in stairs]
    line = [a + (b - a) * step / 60 for a, b in itertools.pairwise(corners) for step in range(61)]
    behind = [*(axes.transData.transform(point) for point in others), *line]
    for point, text in sorted(labels, key=lambda label: (-label[0][1], label[0][0])):
        note = axes.annotate(
            text, point, (0, 0), textcoords="offset points", fontsize=6, color="#222222", zorder=5, va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        taken.append(_settle(axes, note, lambda box: _badness(box, axes.bbox, taken, points, behind)))
    return taken


def _badness(box: Bbox, plot: Bbox, taken: Sequence[Bbox], points: Sequence[Any], others: Sequence[Any]) -> float:
    """What a label there would cost: another label, a point or the edge weigh most, trials and the line little."""
    clashes = sum(box.overlaps(other) for other in taken) + box.count_contains(points)
    outside = sum((box.x0 < plot.x0, box.y0 < plot.y0, box.x1 > plot.x1, box.y1 > plot.y1))
    return 1000.0 * float(clashes + outside) + (12.0 * float(box.count_contains(others)) if others else 0.0)


def _settle(axes: Axes, note: Annotation, badness: Callable[[Bbox], float]) -> Bbox:
    """Move a label to its place and return the box that it fills, in pixels."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    note.update_positions(renderer)
    size = Text.get_window_extent(note, renderer)  # Annotation's own would count the leader line
    (x, y), pixels = axes.transData.transform(note.xy), figure.dpi / 72

    def box(radius: int, angle: int) -> Bbox:
        left = x + radius * pixels * math.cos(math.radians(angle)) - size.width * _LEFT_OF[_side(angle)]
        middle = y + radius * pixels * math.sin(math.radians(angle))
        half = size.height / 2 + _MARGIN
        return Bbox.from_extents(left - _MARGIN, middle - half, left + size.width + _MARGIN, middle + half)

    places = [(radius, angle) for radius in _RADII for angle in _ANGLES]
    radius, angle = min(places, key=lambda place: badness(box(*place)) + place[0])
    note.set_position((radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))))
    note.set_horizontalalignment(_side(angle))
    return box(radius, angle)


def _side(angle: int) -> Literal["left", "center", "right"]:
    """The part of the label that lies nearest to its point."""
    return "center" if angle in (90, 270) else "left" if math.cos(math.radians(angle)) > 0 else "right"
