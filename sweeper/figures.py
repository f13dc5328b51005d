"""The pictures of a run for print: the front, how good it had become by when, and the fronts of several runs.

The front stands at the width of a column of a paper (`COLUMN_IN`), with every trial behind it, so that it can be judged
against what was tried; error bars are the standard deviations of the table. All are drawn from records (`rows`) and
depend on nothing else: equal records give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sweeper import figure_labels, tables
from sweeper.tables import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Look(NamedTuple):
    """How a teacher is drawn: colour, and its marker as matplotlib and as plotly call it."""

    colour: str
    marker: str
    symbol: str


# Okabe and Ito's colours (2008), told apart with any colour vision; grey is left for training from scratch.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("P", "cross"), ("X", "x"))
SCRATCH = Look("#7f7f7f", "x", "x-thin")
BASELINES = ("scratch", "finetuned")  # arms of the ablation that stand beside a front
COLUMN_IN, HEIGHT_IN, DPI = 3.4, 2.9, 300
_INK = "#222222"
_Point = tuple[float, float]


def looks(teachers: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each teacher, the same in every picture of a run; training from scratch comes last."""
    names = sorted(set(teachers) - {"none"})
    found = {
        name: Look(COLOURS[number % len(COLOURS)], *MARKERS[number % len(MARKERS)]) for number, name in enumerate(names)
    }
    return {**found, "none": SCRATCH}


def front(pareto: Sequence[Record], trials: Sequence[Record], ablation: Sequence[Record] = ()) -> dict[str, bytes]:
    """Accuracy against device-hours as `png` and `pdf`: finalists on test with error bars, trials on validation."""
    unit, factor = _unit([*pareto, *trials])
    rows, shown = _scaled(pareto, factor), _scaled(trials, factor)
    baselines = _scaled([record for record in ablation if record["role"] in BASELINES], factor)
    with _canvas(COLUMN_IN, HEIGHT_IN, DPI) as (figure, saved):
        axes = figure.add_subplot()
        tested = [end for record in [*rows, *baselines] for end in _bar(record)]
        bottom = floor([y for _, y in tested], [_searched(record)[1] for record in shown])
        _draw_trials(axes, shown, [str(r["teacher"]) for r in [*pareto, *trials]], bottom)
        stairs = _draw_front(axes, rows, _INK, "o", "front, on test")
        _draw_baselines(axes, baselines)
        _set_axes(axes, [*tested, *map(_searched, shown)], bottom, unit)
        axes.set_ylabel("accuracy")
        _legend(figure, axes)
        figure.draw_without_rendering()  # labels are placed by their size on the paper, which the layout decides
        figure.set_layout_engine("none")
        labels = [(_tested(record), _label(record)) for record in [*rows, *baselines]]
        figure_labels.place(axes, labels, [_searched(r) for r in shown], stairs)
    return saved


def fronts(runs: Mapping[str, Sequence[Record]]) -> dict[str, bytes]:
    """The fronts of several runs in one picture, by name, as `png` and `pdf`: finalists on test with error bars."""
    unit, factor = _unit([record for rows in runs.values() for record in rows])
    shown = {name: _scaled(rows, factor) for name, rows in runs.items()}
    with _canvas(COLUMN_IN, HEIGHT_IN, DPI) as (figure, saved):
        axes = figure.add_subplot()
        for number, (name, rows) in enumerate(shown.items()):
            marker, _ = MARKERS[number % len(MARKERS)]
            _draw_front(axes, rows, COLOURS[number % len(COLOURS)], marker, tables.plain(name))
        tested = [end for rows in shown.values() for record in rows for end in _bar(record)]
        _set_axes(axes, tested, min((y for _, y in tested), default=0.0), unit)
        axes.set_ylabel("accuracy on test")
        _legend(figure, axes)
    return saved


def progress_png(curve: Sequence[Record], device: str) -> bytes:
    """The front's hypervolume against the device time that the search had spent; the shared artifacts' time is grey."""
    unit, xs = device_time(curve, device)
    ys = [record["hypervolume"] for record in curve]
    with _canvas(9, 3.4, 160, ("png",)) as (figure, saved):
        axes = figure.add_subplot()
        if xs[0] > 0:
            axes.axvspan(0, xs[0], color="#eeeeee", linewidth=0, zorder=0)
            # Inside its own band where that is wide enough for the words.
            side, shift = ("left", 4) if xs[0] < 0.25 * xs[-1] else ("right", -6)
            axes.annotate(
                "shared artifacts", (xs[0], 0.95), (shift, 0), ("data", "axes fraction"), "offset points",
                ha=side, va="top", fontsize=8, color="#666666",
            )  # fmt: skip
        axes.step(xs, ys, where="post", color=COLOURS[0], linewidth=1.6, zorder=3)
        axes.scatter(xs[-1:], ys[-1:], s=26, color=COLOURS[0], zorder=4, clip_on=False)
        axes.annotate(f"{ys[-1]:.3f}", (xs[-1], ys[-1]), (-6, 6), textcoords="offset points", ha="right", fontsize=9)
        axes.set_xlim(0, xs[-1] or 1.0)
        axes.set_ylim(0, max(ys) * 1.15 or 1.0)
        axes.set_xlabel(f"device time spent by the search ({unit})")
        axes.set_ylabel("hypervolume of the front")
        _style(axes)
    return saved["png"]


def device_time(curve: Sequence[Record], device: str) -> tuple[str, list[float]]:
    """The unit of a curve's device time, and the time in it of each of its points."""
    hours = [record["seconds"] / 3600 for record in curve]
    unit, factor = tables.cost_unit(hours, device)
    return unit, [value * factor for value in hours]


@contextmanager
def _canvas(
    width: float, height: float, dpi: int, kinds: Sequence[str] = ("png", "pdf")
) -> Iterator[tuple[Figure, dict[str, bytes]]]:
    """An empty figure, and what holds it as each of `kinds` when the block ends."""
    import matplotlib

    # The object interface with its own canvas: no global figure, and no back end that could look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    saved: dict[str, bytes] = {}
    # Type 42 fonts: what most publishers ask for.
    looks: Any = {"font.family": "DejaVu Sans", "text.parse_math": False, "pdf.fonttype": 42}
    if width <= COLUMN_IN:
        looks |= {"font.size": 7, "axes.linewidth": 0.6, "xtick.labelsize": 6, "ytick.labelsize": 6}
    with warnings.catch_warnings(), matplotlib.rc_context(looks):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that DejaVu lacks: boxes
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, saved
        nameless = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=nameless[kind])
            saved[kind] = buffer.getvalue()


def _style(axes: Axes) -> None:
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def is_shown(record: Record) -> bool:
    """Whether a row has a place in the plane of accuracy and log cost."""
    accuracy, hours = record["accuracy_val"], record["gpu_hours"]
    return accuracy is not None and math.isfinite(accuracy) and hours is not None and 0 < hours < math.inf


def _unit(records: Sequence[Record]) -> tuple[str, float]:
    """For costs, with the factor from device-hours to it."""
    return tables.cost_unit([record["gpu_hours"] for record in records if is_shown(record)], device_of(records))


def device_of(records: Sequence[Record]) -> str:
    """That times were taken on."""
    return str(next((record["device"] for record in records), "cpu"))


def _scaled(records: Sequence[Record], factor: float) -> list[Record]:
    """Those that have a place, with their costs in the unit: ticks lie at its round figures."""
    return [{**record, "gpu_hours": record["gpu_hours"] * factor} for record in records if is_shown(record)]


def _searched(record: Record) -> _Point:
    return float(record["gpu_hours"]), float(record["accuracy_val"])


def _tested(record: Record) -> _Point:
    """On test, where there is such."""
    accuracy = record["accuracy_test"]
    return float(record["gpu_hours"]), float(record["accuracy_val"] if accuracy is None else accuracy)


def _bar(record: Record) -> tuple[_Point, _Point]:
    """The ends of its error bar."""
    cost, accuracy = _tested(record)
    std = float(record["accuracy_test_std"] or 0.0)
    return (cost, accuracy - std), (cost, accuracy + std)


def floor(front: Sequence[float], trials: Sequence[float]) -> float:
    """Lower end of the accuracy axis: a trial that learnt nothing must not squeeze the front into one line."""
    every = [*front, *trials] or [0.0]
    reach = max(0.08, 2.5 * (max(front) - min(front))) if front else 1.0
    return max(min(every), min(front, default=0.0) - reach) if front else min(every)


def _draw_trials(axes: Axes, trials: Sequence[Record], teachers: Sequence[str], bottom: float) -> None:
    for name, look in looks(teachers).items():
        points = [_searched(record) for record in trials if record["teacher"] == name]
        inside = [point for point in points if point[1] >= bottom]
        below = [(x, bottom) for x, y in points if y < bottom]
        label = tables.plain(f"teacher {name}" if name != "none" else "no teacher")
        line = {"linewidths": 0.6} if look.marker == "x" else {"edgecolors": "white", "linewidths": 0.2}
        if inside or below:
            axes.scatter(*_columns(inside), s=9, marker=look.marker, c=look.colour, alpha=0.6, label=label, **line)
        if below:
            axes.scatter(*_columns(below), s=9, marker="v", alpha=0.6, color=look.colour, clip_on=False)
    hidden = sum(_searched(record)[1] < bottom for record in trials)
    if hidden:
        note = f"▾ {hidden} trial{'s' if hidden > 1 else ''} below this range"
        axes.annotate(
            note, (1, 0), (-2, 3), "axes fraction", "offset points", ha="right", fontsize=5.5, color="#666666"
        )


def _columns(points: Sequence[_Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _draw_front(axes: Axes, rows: Sequence[Record], colour: str, marker: str, label: str) -> list[_Point]:
    """A staircase: between two points of a front the cheaper one is what can be had. Returns its corners."""
    steps: list[_Point] = []
    for point in sorted(map(_tested, rows), key=lambda p: (p[0], -p[1])):
        if not steps or point[1] > steps[-1][1]:
            steps.append(point)
    axes.plot(*_columns(steps), drawstyle="steps-post", color=colour, linewidth=0.9, zorder=3)
    _draw_bars(axes, rows, colour, marker, label)
    turns = [(after[0], before[1]) for before, after in itertools.pairwise(steps)]
    return [corner for step in itertools.zip_longest(steps, turns) for corner in step if corner is not None]


def _draw_bars(axes: Axes, rows: Sequence[Record], colour: str, marker: str, label: str) -> None:
    """Points with the standard deviation over seeds, where several were trained."""
    bars = [record["accuracy_test_std"] or 0.0 for record in rows]
    axes.errorbar(
        *_columns([*map(_tested, rows)]), yerr=bars, fmt=marker, markersize=4, markerfacecolor="white", color=colour,
        markeredgewidth=0.9, elinewidth=0.8, capsize=2, capthick=0.8, linestyle="none", zorder=4, label=label,
    )  # fmt: skip


def _draw_baselines(axes: Axes, baselines: Sequence[Record]) -> None:
    if baselines:
        _draw_bars(axes, baselines, "#7f7f7f", "s", "baseline, on test")


def _set_axes(axes: Axes, points: Sequence[_Point], bottom: float, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    xs, ys = _columns(points or [(1.0, 0.0)])
    axes.set_xscale("log")
    pad = max(1.15, (max(xs) / min(xs)) ** 0.08)
    axes.set_xlim(min(xs) / pad, max(xs) * pad)
    height = max(max(ys) - bottom, 0.01)
    axes.set_ylim(bottom - 0.06 * height, min(max(ys) + 0.12 * height, max(1.005, max(ys))))
    fine = math.log10(max(xs) / min(xs)) < 1.2
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"cost from nothing, {unit} (log scale)")
    _style(axes)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=6,
            handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip


def _label(record: Record) -> str:
    """A finalist by its place in the table; a baseline by its role."""
    if record["role"] != "front":
        return tables.plain(record["role"])
    teacher = "" if record["teacher"] == "none" else f"{record['teacher']} → "
    return tables.plain(f"{record['rank']}  {teacher}{record['student']}")
