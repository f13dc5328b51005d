"""`sweeper plan`'s table: units, prices, what is cached or unknown, in 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from command_line import NOISE, sweeper
from rich.cells import cell_len
from small_sweep import write_space
from test_forecast import made_up, row

from sweeper import forecast
from sweeper.console import Console
from sweeper.layout import fitted
from sweeper.plan_table import plan_table
from sweeper.tables import bytes_text

ROWS = (
    row("images", 0.0, basis=forecast.NO_DEVICE, start_s=10.0),
    row("adapt", 0.0, bytes=0, basis=forecast.CACHED),
    row("synthetic", None, bytes=2_000_000_000, name="a source with a rather long name", basis=forecast.UNKNOWN),
    row("targets", 7200.0, workers=2, basis=forecast.TIMED),
    row("search", 36000.0, samples=None, bytes=0, workers=10),
)


def test_each_part_has_its_units() -> None:
    table = plan_table(made_up(*ROWS))
    assert table.headers == ("", "name", "samples", "bytes", "GPU time", "clock", "by")
    assert table.rows == (
        ("images", "images", "5,760 views", "5.23 MB", "-", "10 s", ""),
        ("teachers", "adapt", "5,760 views", "0", "0", "0", "cached"),
        ("synthetic", "a source with a rather long name", "5,760 views", "2.00 GB", "?", "?", "not known"),
        ("targets", "targets", "5,760 views", "5.23 MB", "2 h 00 min", "1 h 00 min", "measured"),
        ("search", "search", "-", "-", "10 h 00 min", "1 h 00 min", "counted"),
        ("total", "", "", "2.01 GB", "12 h 00 min", "2 h 00 min", ""),
    )
    assert "No price given: --price" in table.caption
    assert "17 lanes" in table.caption


def test_a_price_adds_dollars_and_the_head() -> None:
    table = plan_table(made_up(*ROWS, price=3.0, head_price=1.0))
    column = table.headers.index("dollars")
    hours = 10 / 3600 + 1 + 1 + forecast.START_S / 3600
    assert [cells[column] for cells in table.rows] == ["-", "0", "?", "6.00", "30.00", f"{36 + hours:.2f}"]
    assert "device time at $3.00 an hour, and the head at $1.00 an hour" in " ".join(table.caption.split())


def test_it_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    console = Console(stream=stream)
    console.show(fitted(plan_table(made_up(*ROWS, price=3.0)), console.width))
    lines = stream.getvalue().splitlines()
    assert all(cell_len(line.rstrip()) <= 80 for line in lines), stream.getvalue()
    assert all(figure in stream.getvalue() for figure in ("10 h 00 min", "2 h 00 min", "5.23 MB", "36.00"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (5_230_080, "5.23 MB"), (1.2e12, "1.20 TB"), (3e18, "3000 PB")],
)
def test_bytes_have_three_digits(count: float, expected: str) -> None:
    assert bytes_text(int(count)) == expected


@pytest.mark.slow  # half a minute; test_calibration has its parts
def test_the_command_times_models_once_and_builds_nothing(
    tmp_path: Path, generator_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user calls it: with as many processes as lanes; the second time from what the first one measured."""
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    write_space(tmp_path / "space.yaml", generator_folder)
    first = sweeper(tmp_path, "plan", "space.yaml", "--price", "2")
    assert (first.stderr, first.returncode) == ("", 0)
    assert not NOISE.search(first.stdout), NOISE.findall(first.stdout)
    for words in ("search", "finalists", "total", "measured", "Dollars: device time at $2.00"):
        assert words in " ".join(first.stdout.split())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "calibration").iterdir()}
    assert kept
    assert {path.name for path in tmp_path.iterdir()} == {"space.yaml", "cache"}
    again = sweeper(tmp_path, "plan", "space.yaml", "--no-calibrate")
    assert "measured" not in again.stdout
    assert "counted" in again.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
