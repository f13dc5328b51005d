"""The live display on a real terminal: sizes, a resize, no colours, a dumb one, `--quiet`, Ctrl-C."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import rich.console
from rich.cells import cell_len
from statuses import busy
from terminals import Terminal

from sweeper import status
from sweeper.display import Display

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")
# A run without Ray: stages, a search that goes on until a file says so, and its end.
RUN = """
import sys, time
from pathlib import Path
from sweeper.console import Console
from sweeper.monitor import Expected
from sweeper.status import LaneStatus, Point

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.02)

console = Console(quiet="--quiet" in sys.argv)
expected = {"images": Expected(0.0, 5.0), "search": Expected(60.0, 30.0), "finalists": Expected(10.0, 5.0)}
with console.run(Path("run")) as monitor:
    monitor.expect("digits/0123456789", expected, "cpu")
    console.header(["sweeper digits/0123456789", "  4 trials"])
    with console.stage("images", 440, "images") as images:
        images.advance(440, 1_230_000)
    with console.search(4) as search:
        monitor.lanes(2)
        for lane in range(2):
            label = "cnn > test_resnet, ce+kl " * 9
            said = LaneStatus(lane=lane, job=f"trial {lane}", label=label, epoch=3, epochs=40, accuracy=0.9, busy=0.97)
            monitor.lane(said, 5.0)
        points = [(0.5, 1e-3), (0.7, 2e-3), (0.9, 4e-3)]
        monitor.front([Point(hours=h, accuracy=a, is_on_front=True) for a, h in points], 0.5)
        search.finished(0, "failed", "cnn > test_vit", None, 0.001, error="OutOfMemoryError: 2.5 GiB")
        search.finished(1, "completed", "cnn > test_vit", 0.9, 0.001)
        wait_for("go on")
        search.finished(2, "failed", "cnn > test_vit", None, 0.001, error="OutOfMemoryError: 3.5 GiB")
        wait_for("end")
console.message("best student: here")
"""


def start(folder: Path, columns: int, rows: int, *arguments: str, **more: str) -> Terminal:
    return Terminal(folder, columns, rows, "-c", RUN, *arguments, more=more)


def has_all(lines: list[str]) -> bool:
    return any(line.startswith("failed 1 x: OutOfMemoryError: 2.5 GiB") for line in lines) and lines[-1] == ""


def heads(lines: list[str]) -> list[int]:
    """Where the display begins: its first line ends with the time on the clock."""
    return [at for at, line in enumerate(lines) if re.search(r"running [0-9.]+ s", line)]


def test_all_of_a_search_stands_on_80_by_24_and_leaves_its_lines(tmp_path: Path) -> None:
    terminal = start(tmp_path, 80, 24)
    terminal.until(lambda lines: any(line.startswith("failed 1 x: OutOfMemory") for line in lines))
    shown = terminal.until(lambda lines: any(line.startswith("> search     2/4 trials") for line in lines))
    text = "\n".join(shown)
    assert len(heads(shown)) == 1
    for piece in ("spent 10.0 CPU-s of 70.0 forecast (14%)", "440 images", "1.23 MB", "  finalists  waiting", "lane 1"):
        assert piece in text
    assert text.count("●") == 3 + 1
    assert "hypervolume 0.500" in text
    assert shown.index(next(line for line in shown if line.startswith("[1/4] trial 0 failed"))) < heads(shown)[0]
    (tmp_path / "go on").touch()
    terminal.until(lambda lines: any(line.startswith("failed 2 x: OutOfMemory") for line in lines))
    (tmp_path / "end").touch()
    assert terminal.finish() == 0
    left = [re.sub(r" in [0-9.]+ s \(.*/s\)", "", line) for line in terminal.printed if line]
    assert left == [
        "sweeper digits/0123456789",
        "  4 trials",
        "images: 440 images",
        "[1/4] trial 0 failed (OutOfMemoryError: 2.5 GiB): cnn > test_vit, 3.60 CPU-s",
        "[3/4] trial 2 failed (OutOfMemoryError: 3.5 GiB): cnn > test_vit, 3.60 CPU-s",
        next(line for line in left if line.startswith("search: 3/4 trials, 0 stopped, 2 failed, best 0.900 (trial 1)")),
        "best student: here",
    ]
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("size", [(200, 50), (120, 12), (50, 40), (40, 10)])
def test_after_a_resize_there_is_one_picture_of_the_new_size(tmp_path: Path, size: tuple[int, int]) -> None:
    terminal = start(tmp_path, 80, 24)
    terminal.until(lambda lines: any(line.startswith("> search     2/4 trials") for line in lines))
    terminal.resize(*size)
    terminal.after(2000)
    for _ in range(3):
        terminal.after(1)
        shown = terminal.until(lambda lines: len(heads(lines)) == 1)
        above = shown[: heads(shown)[0]]
        assert all("lane 0" not in line and "spent" not in line for line in above), "nothing is left of the old"
    assert any("2/4 trials, 0 stopped, 1 failed" in line for line in terminal.lines)
    (tmp_path / "go on").touch()
    (tmp_path / "end").touch()
    assert terminal.finish() == 0
    assert not heads(terminal.lines)


def test_lines_that_a_narrower_terminal_breaks_are_all_wiped() -> None:
    """A terminal of 30 columns shows a line of 80 as three: rich alone would move up over one of them."""
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True, width=80, height=24, legacy_windows=False)
    now = busy(2)
    with Display(console, lambda: now) as display:
        display.refresh()
        drawn = [line.cell_len for line in display._draw().renderables]  # type: ignore[attr-defined]
        before = len(out.getvalue())
        console.size = rich.console.ConsoleDimensions(30, 24)
        display.refresh()
        moved_up = out.getvalue()[before:].split("sweeper", 1)[0].count("\x1b[1A")
    assert moved_up == min(24, sum(-(-cells // 30) for cells in drawn)) - 1


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("PYTHONUTF8", "0")])
def test_terminals_with_less(tmp_path: Path, name: str, value: str) -> None:
    more = {name: value, **({"PYTHONIOENCODING": "ascii"} if name == "PYTHONUTF8" else {})}
    terminal = start(tmp_path, 80, 24, **more)
    (tmp_path / "go on").touch()
    terminal.until(lambda lines: any("[3/4] trial 2 failed" in line for line in lines))
    if name != "TERM":
        shown = terminal.until(lambda lines: any(line.startswith("failed 2 x") for line in lines))
        assert heads(shown)
        assert ("O---" in terminal.text) == (name == "PYTHONUTF8")
    (tmp_path / "end").touch()
    assert terminal.finish() == 0
    if name == "NO_COLOR":
        assert not COLOUR.search(terminal.raw)
    elif name == "TERM":
        assert b"\x1b" not in terminal.raw
        assert not heads(terminal.printed)
        assert any("[2/4] trial 1 completed" in line for line in terminal.printed)
    else:
        assert terminal.raw.isascii()


def test_colours_are_there_where_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "go on").touch()
    (tmp_path / "end").touch()
    terminal = start(tmp_path, 80, 24)
    assert terminal.finish() == 0
    assert COLOUR.search(terminal.raw)


def test_quiet_draws_nothing_and_keeps_the_status_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "go on").touch()
    (tmp_path / "end").touch()
    terminal = start(tmp_path, 80, 24, "--quiet")
    assert (terminal.finish(), terminal.raw) == (0, b"")
    found = status.read(tmp_path / "run" / status.FILE)
    assert found is not None
    assert (found.state, found.label) == (status.FINISHED, "digits/0123456789")


def test_ctrl_c_leaves_the_terminal_as_it_was_and_the_status_as_interrupted(tmp_path: Path) -> None:
    terminal = start(tmp_path, 80, 24)
    terminal.until(lambda lines: any(line.startswith("lane 1") for line in lines))
    terminal.press_ctrl_c()
    assert terminal.finish() != 0
    assert not heads(terminal.lines)
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
    found = status.read(tmp_path / "run" / status.FILE)
    assert found is not None
    assert found.state == status.INTERRUPTED
    assert {stage.kind: stage.state for stage in found.stages}["search"] == status.LEFT
    assert max(map(cell_len, terminal.lines)) <= 80
