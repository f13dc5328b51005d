"""The pictures of a run: every trial with the front, and how good the front had become by when.

The first shows every trial, so that the front can be judged against what was tried. Both are drawn from records
(`rows`) and depend on nothing else: equal records give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sweeper import tables
from sweeper.tables import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Okabe and Ito's colours (2008), told apart with any colour vision; grey is left for training from scratch.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_SCRATCH = "#7f7f7f"
_MARKERS = ("o", "s", "^", "D", "P", "X")
_INK = "#222222"
_ANGLES = (150, 120, 180, 210, 330, 30, 90, 270, 300, 60, 240, 0)  # up and to the left of a staircase is mostly free
_Point = tuple[float, float]


def front_png(pareto: Sequence[Record], trials: Sequence[Record]) -> bytes:
    """Accuracy on validation against device-hours: all trials by teacher, the front, labelled finalists."""
    with _canvas(9, 5.6) as (figure, buffer):
        axes = figure.add_subplot()
        front = [_point(record) for record in pareto if _is_shown(record)]
        shown = [record for record in trials if _is_shown(record)]
        floor = _floor([y for _, y in front], [_point(record)[1] for record in shown])
        _draw_trials(axes, shown, [str(r["teacher"]) for r in [*pareto, *trials]], floor)
        stairs = _draw_front(axes, front)
        device = str(next((record["device"] for record in [*pareto, *trials]), "cpu"))
        _set_axes(axes, [*front, *map(_point, shown)], floor, device)
        figure.draw_without_rendering()  # labels are placed by their size on the paper, which the layout decides
        figure.set_layout_engine("none")
        _place_labels(axes, [record for record in pareto if _is_shown(record)], [_point(r) for r in shown], stairs)
    return buffer.getvalue()


def progress_png(curve: Sequence[Record], device: str) -> bytes:
    """The front's hypervolume against the device time that the search had spent; the shared artifacts' time is grey."""
    unit, factor = tables.cost_unit([record["seconds"] / 3600 for record in curve], device)
    xs = [record["seconds"] / 3600 * factor for record in curve]
    ys = [record["hypervolume"] for record in curve]
    with _canvas(9, 3.4) as (figure, buffer):
        axes = figure.add_subplot()
        if xs[0] > 0:
            axes.axvspan(0, xs[0], color="#eeeeee", linewidth=0, zorder=0)
            # Inside its own band where that is wide enough for the words.
            side, shift = ("left", 4) if xs[0] < 0.25 * xs[-1] else ("right", -6)
            axes.annotate(
                "shared artifacts", (xs[0], 0.95), (shift, 0), ("data", "axes fraction"), "offset points",
                ha=side, va="top", fontsize=8, color="#666666",
            )  # fmt: skip
        axes.step(xs, ys, where="post", color=_COLOURS[0], linewidth=1.6, zorder=3)
        axes.scatter(xs[-1:], ys[-1:], s=26, color=_COLOURS[0], zorder=4, clip_on=False)
        axes.annotate(f"{ys[-1]:.3f}", (xs[-1], ys[-1]), (-6, 6), textcoords="offset points", ha="right", fontsize=9)
        axes.set_xlim(0, xs[-1] or 1.0)
        axes.set_ylim(0, max(ys) * 1.15 or 1.0)
        axes.set_xlabel(f"device time spent by the search ({unit})")
        axes.set_ylabel("hypervolume of the front")
        _style(axes)
    return buffer.getvalue()


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """An empty figure, and the buffer that holds it as PNG when the block ends."""
    import matplotlib

    # The object interface with its own canvas: no global figure, and no back end that could look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that DejaVu lacks: boxes
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, buffer
        figure.savefig(buffer, format="png", metadata={"Software": None})


def _style(axes: Axes) -> None:
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _point(record: Record) -> _Point:
    return float(record["gpu_hours"]), float(record["accuracy_val"])


def _is_shown(record: Record) -> bool:
    accuracy, hours = record["accuracy_val"], record["gpu_hours"]
    return accuracy is not None and math.isfinite(accuracy) and hours is not None and 0 < hours < math.inf


def _floor(front: Sequence[float], trials: Sequence[float]) -> float:
    """Lower end of the accuracy axis: a trial that learnt nothing must not squeeze the front into one line."""
    every = [*front, *trials] or [0.0]
    reach = max(0.08, 2.5 * (max(front) - min(front))) if front else 1.0
    return max(min(every), min(front, default=0.0) - reach) if front else min(every)


def _draw_trials(axes: Axes, trials: Sequence[Record], teachers: Sequence[str], floor: float) -> None:
    names = sorted(set(teachers) - {"none"})
    looks = {name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}
    looks["none"] = (_SCRATCH, "x")
    for name in [*names, "none"]:
        colour, marker = looks[name]
        points = [_point(record) for record in trials if record["teacher"] == name]
        inside = [point for point in points if point[1] >= floor]
        below = [(x, floor) for x, y in points if y < floor]
        label = tables.plain(f"teacher {name}" if name != "none" else "no teacher")
        line = (
            {"facecolors": colour}
            if marker == "x"
            else {"facecolors": colour, "edgecolors": "white", "linewidths": 0.5}
        )
        if inside or below:
            axes.scatter(*_columns(inside), s=34, marker=marker, alpha=0.55, label=label, zorder=2, **line)
        if below:
            axes.scatter(*_columns(below), s=34, marker="v", alpha=0.55, color=colour, zorder=2, clip_on=False)
    hidden = sum(_point(record)[1] < floor for record in trials)
    if hidden:
        note = f"▾ {hidden} trial{'s' if hidden > 1 else ''} below this range"
        axes.annotate(note, (1, 0), (-4, 6), "axes fraction", "offset points", ha="right", fontsize=8, color="#666666")


def _columns(points: Sequence[_Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _draw_front(axes: Axes, points: Sequence[_Point]) -> list[_Point]:
    """A staircase: between two points of a front the cheaper one is what can be had. Returns its corners."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axes.plot(*_columns(front), drawstyle="steps-post", color=_INK, linewidth=1.3, zorder=3, label="front")
    axes.scatter(*_columns(points), s=62, facecolor="white", edgecolor=_INK, linewidth=1.5, zorder=4, label="finalist")
    turns = [(after[0], before[1]) for before, after in itertools.pairwise(front)]
    return [corner for step in itertools.zip_longest(front, turns) for corner in step if corner is not None]


def _set_axes(axes: Axes, points: Sequence[_Point], floor: float, device: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    xs, ys = _columns(points or [(1.0, 0.0)])
    axes.set_xscale("log")
    pad = max(1.15, (max(xs) / min(xs)) ** 0.08)
    axes.set_xlim(min(xs) / pad, max(xs) * pad)
    height = max(max(ys) - floor, 0.01)
    axes.set_ylim(floor - 0.06 * height, min(max(ys) + 0.12 * height, max(1.005, max(ys))))
    fine = math.log10(max(xs) / min(xs)) < 1.2
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if fine else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tables.significant(value, 2)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    unit = "CPU device-hours" if tables.processor(device) == "CPU" else "GPU-hours"
    axes.set_xlabel(f"{unit} from nothing (log scale)")
    axes.set_ylabel("accuracy on validation")
    _style(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, borderaxespad=0)


def _place_labels(axes: Axes, records: Sequence[Record], trials: Sequence[_Point], stairs: Sequence[_Point]) -> None:
    """Greedy: for each finalist the nearest place that covers no other label, no finalist and no edge of the plot."""
    taken: list[Bbox] = []
    finalists = [axes.transData.transform(_point(record)) for record in records]
    corners = [axes.transData.transform(point) for point in stairs]
    line = [a + (b - a) * step / 60 for a, b in itertools.pairwise(corners) for step in range(61)]
    others = [*(axes.transData.transform(point) for point in trials), *line]
    for record in sorted(records, key=lambda r: (-r["accuracy_val"], r["gpu_hours"])):
        teacher = "" if record["teacher"] == "none" else f"{record['teacher']} → "
        text = tables.plain(f"{teacher}{record['student']}\n{tables.accuracy_text(record['accuracy_val'])}")
        note = axes.annotate(
            text,
            _point(record),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
            zorder=5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )
        taken.append(_settle(axes, note, lambda box: _badness(box, axes.bbox, taken, finalists, others)))


def _badness(box: Bbox, plot: Bbox, taken: Sequence[Bbox], finalists: Sequence[Any], others: Sequence[Any]) -> float:
    """What a label there would cost: another label, a finalist or the edge weigh most, trials and the line little."""
    clashes = sum(box.overlaps(other) for other in taken) + box.count_contains(finalists)
    outside = sum((box.x0 < plot.x0, box.y0 < plot.y0, box.x1 > plot.x1, box.y1 > plot.y1))
    return 1000.0 * float(clashes + outside) + (12.0 * float(box.count_contains(others)) if others else 0.0)


def _settle(axes: Axes, note: Annotation, badness: Callable[[Bbox], float]) -> Bbox:
    """Move a label to its place and return the box that it fills, in pixels."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    def move(radius: int, angle: int) -> Bbox:
        note.set_position((radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))))
        note.set_horizontalalignment(
            "center" if angle in (90, 270) else "left" if math.cos(math.radians(angle)) > 0 else "right"
        )
        note.update_positions(renderer)
        extent = Text.get_window_extent(note, renderer)  # Annotation's own would count the leader line
        return Bbox.from_extents(extent.x0 - 4, extent.y0 - 3, extent.x1 + 4, extent.y1 + 3)

    renderer = axes.get_figure(root=True).canvas.get_renderer()  # type: ignore[union-attr]
    places = [(radius, angle) for radius in (14, 22, 32, 44, 58, 74, 92, 112, 134) for angle in _ANGLES]
    return move(*min(places, key=lambda place: badness(move(*place)) + place[0]))
