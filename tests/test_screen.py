"""What a terminal shows of a run, at every size that terminals have, and the front in characters."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len
from statuses import POINTS, busy

from sweeper import scatter, screen, status
from sweeper.console import Console
from sweeper.status import Cause, LaneStatus, Point, Status, Trials

SIZES = [(80, 23), (200, 49), (40, 9), (120, 30), (80, 8), (30, 5), (20, 3), (1, 1), (500, 300)]
NASTY = "[red]\x1b[31mboo\x07\n[/red]"


def lines(now: Status, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    return [line.plain for line in screen.render(now, width, height, ascii_only=ascii_only)]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("num_lanes", [0, 1, 2, 8, 400])
def test_nothing_is_wider_or_taller_than_the_terminal(
    width: int, height: int, num_lanes: int, ascii_only: bool
) -> None:
    for now in (busy(num_lanes), Status(), replace(busy(num_lanes), points=()), busy(num_lanes, label="蒸馏" * 90)):
        shown = lines(now, width, height, ascii_only=ascii_only)
        assert len(shown) <= height
        assert all(cell_len(line) <= width for line in shown)
        assert all("\n" not in line for line in shown)


def test_a_terminal_of_80_by_24_shows_it_all() -> None:
    shown = lines(busy(2), 80, 23)
    text = "\n".join(shown)
    assert shown[0].startswith("sweeper smoke/0123456789 ")
    assert shown[0].endswith("running 12 min 20 s, about 3 min 50 s left")
    assert shown[1] == "spent 0.215 CPU-h of 0.285 forecast (75%), $0.31 of $0.41"
    assert "  images     440 images        512/s  1.23 MB            1.2 s" in shown
    assert "  synthetic  12,000 images    20.1/s  43.1 MB      10 min 00 s  0.164/0.170 h" in shown
    assert "> search     12/24 trials   12.0/min           2 min 10 s left  0.033/0.071 h" in shown
    assert "  finalists  waiting                                            0.000/0.028 h" in shown
    assert "12/24 trials, 3 stopped, 4 failed, best 0.940 (trial 7), hypervolume 0.532" in shown
    assert any(line.startswith("failed 3 x: OutOfMemoryError") for line in shown)
    assert any(
        line.startswith("lane 1  trial 8  cnn") and line.endswith("epoch 3/40  0.900  97% busy") for line in shown
    )
    assert text.count("●") == 1 + sum(point.is_on_front for point in POINTS)
    assert shown[-1].endswith(" 11.0 CPU-s")


def test_a_wide_terminal_has_the_front_beside_the_rest() -> None:
    shown = lines(busy(4), 200, 49)
    (row,) = [line for line in shown if line.startswith("lane 0")]
    assert "97% busy" in row
    assert "│" in row
    assert len(shown) < 49, "no taller than what there is to show"


def test_a_small_terminal_keeps_the_search_and_its_lanes() -> None:
    shown = lines(busy(2), 40, 9)
    assert any(line.startswith("> search") for line in shown)
    assert sum("trial" in line and "epoch 3/40" in line for line in shown) == 2
    assert not any(line.startswith("  images") for line in shown)


def test_more_lanes_than_lines_are_counted() -> None:
    shown = lines(busy(40), 80, 23)
    named = [line for line in shown if line.startswith("lane ")]
    assert f"and {40 - len(named)} more lanes" in shown
    assert any("●" in line for line in shown), "the front has its place all the same"
    assert len(shown) == 23


def test_without_utf8_every_character_is_ascii() -> None:
    for width in (80, 200):
        text = "\n".join(lines(busy(3), width, 30, ascii_only=True))
        assert text.isascii()
        assert "O---" in text


def test_names_are_shown_on_one_line_and_not_read_as_markup_or_control() -> None:
    one = LaneStatus(lane=0, job=NASTY, label=NASTY, epoch=1, epochs=2)
    trials = Trials(failed=1, causes=(Cause(text=NASTY, count=1),))
    now = Status(label=NASTY, reason=NASTY, lanes=(one,), trials=trials)
    shown = lines(now, 120, 30)
    assert all(line.isprintable() for line in shown)
    assert sum(line.count("[red]boo") for line in shown) == 5


def test_failures_of_many_causes_take_few_lines() -> None:
    causes = tuple(Cause(text=f"cause {letter}", count=9 - n) for n, letter in enumerate("abcde"))
    now = Status(trials=Trials(done=40, failed=36, causes=causes))
    failed = [line for line in lines(now, 80, 23) if line.startswith("failed")]
    assert failed == ["failed 9 x: cause a", "failed 8 x: cause b", "failed 7 x: cause c", "failed 12 x: other causes"]
    assert sum(line.startswith("failed") for line in lines(now, 80, 10)) == 1


@pytest.mark.parametrize(
    ("rate", "text"), [(512.3, "512/s"), (0.2, "12.0/min"), (0.001, "3.60/h"), (None, ""), (0.0, "")]
)
def test_a_rate_has_the_unit_in_which_it_is_at_least_one(rate: float | None, text: str) -> None:
    assert screen._rate(rate) == text


def test_a_run_that_has_ended_says_how() -> None:
    now = replace(busy(0), state=status.FAILED, reason="the store failed", seconds_left=None)
    assert lines(now, 80, 23)[0].endswith("failed after 12 min 20 s")
    assert lines(now, 80, 23)[1] == "the store failed"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_screen_is_printed_once_where_no_terminal_is(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(stream=stream).draw(busy(3))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.isascii() == (encoding == "ascii")
    assert "\x1b" not in text
    assert "?" not in text
    assert text.splitlines()[0].startswith("sweeper smoke/")


# ------------------------------------------------------------------------------------------------- the front


def cells(points: tuple[Point, ...], width: int = 60, height: int = 12) -> list[str]:
    return scatter.scatter(points, "cpu", width, height, scatter.ASCII)


def test_the_front_is_drawn_to_scale() -> None:
    """Costs in logarithms: of 1, 10 and 100 seconds the second is in the middle."""
    points = tuple(
        Point(hours=10**n / 3600, accuracy=accuracy, is_on_front=True) for n, accuracy in enumerate((0.1, 0.5, 0.9))
    )
    head, *rows, axis = cells(points, width=scatter.MARGIN + 41, height=2 + 9)
    assert head.startswith("val accuracy by CPU-s: O front, . beaten")
    assert [(n, row.index("O") - scatter.MARGIN) for n, row in enumerate(rows) if "O" in row] == [
        (0, 40),
        (4, 20),
        (8, 0),
    ]
    assert (rows[0][:5], rows[4][:5], rows[8][:5]) == ("0.900", "0.500", "0.100")
    assert [word for word in axis.split() if not word.startswith("-")] == ["+1.00", "10.00", "100", "CPU-s"]
    assert all(row[column] == "-" for row, column in ((rows[8][scatter.MARGIN :], 10), (rows[4][scatter.MARGIN :], 30)))
    assert [rows[n][scatter.MARGIN + 20] for n in range(5, 9)] == ["|", "|", "|", "+"]


def test_points_that_are_beaten_are_drawn_otherwise_and_below_the_front() -> None:
    *_, last = cells(POINTS)
    text = "\n".join(cells(POINTS)[1:-1])
    assert text.count("O") == sum(point.is_on_front for point in POINTS)
    assert text.count(".") - sum(line[:5].count(".") for line in cells(POINTS)[1:-1]) == sum(
        not point.is_on_front for point in POINTS
    )
    assert last.endswith("11.0 CPU-s")


@pytest.mark.parametrize("hours", [1e-9, 1e-3, 1.0, 1e6])
def test_a_single_point_is_drawn(hours: float) -> None:
    drawn = cells((Point(hours=hours, accuracy=1.0, is_on_front=True),))
    assert sum("O" in line for line in drawn[1:-1]) == 1
    assert {len(line) for line in drawn} == {60}


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H100 80GB HBM3"])
def test_the_unit_of_the_axis_is_that_of_the_pareto_table(device: str) -> None:
    points = (Point(hours=0.5, accuracy=0.1, is_on_front=True), Point(hours=5.0, accuracy=0.2, is_on_front=True))
    assert scatter.scatter(points, device, 60, 8)[-1].endswith(f"5.00 {'CPU' if device == 'cpu' else 'GPU'}-h")


@pytest.mark.parametrize(("width", "height"), [(scatter.LEAST_WIDTH - 1, 20), (80, scatter.LEAST_HEIGHT - 1)])
def test_without_room_or_points_nothing_is_drawn(width: int, height: int) -> None:
    assert scatter.scatter(POINTS, "cpu", width, height) == []
    assert scatter.scatter((), "cpu", 80, 20) == []
    assert scatter.scatter((Point(hours=0.0, accuracy=0.5, is_on_front=True),), "cpu", 80, 20) == []


def test_many_points_in_a_small_picture_stay_inside() -> None:
    points = tuple(
        Point(hours=math.exp(n % 17 - 8), accuracy=(n * 37 % 101) / 100, is_on_front=n % 5 == 0) for n in range(500)
    )
    drawn = scatter.scatter(points, "cpu", scatter.LEAST_WIDTH, scatter.LEAST_HEIGHT)
    assert {len(line) for line in drawn} == {scatter.LEAST_WIDTH}
    assert len(drawn) == scatter.LEAST_HEIGHT
