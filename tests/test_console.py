from __future__ import annotations

import io
import os
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.cells import cell_len
from run_samples import STUDENTS, ablation_rows, final_row, final_rows

from sweeper import status
from sweeper.console import Console
from sweeper.errors import RunFailed
from sweeper.layout import runs_table
from sweeper.status import LaneStatus

NASTY = "[red]\x1b[31mboo\x07[/red]"


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_header_goes_on_in_its_own_column(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    said = f"3\xa0h\xa025\xa0min {'and so on ' * 12}"
    Console(stream=stream).header(["sweeper: tiny/a1", f"  forecast   {said}", "  data       few"])
    title, first, *rest, last = stream.getvalue().splitlines()
    assert (title, last) == ("sweeper: tiny/a1", "  data       few")
    assert all(len(line) <= max(width, 26) for line in (first, *rest))
    assert all(line[:13].isspace() and line[13] != " " for line in rest)
    assert " ".join([first[13:], *(line[13:] for line in rest)]) == said.replace("\xa0", " ").strip()


def _use(console: Console) -> None:
    console.header(["sweeper: tiny/a1", "16 trials"])
    with console.stage("images", 10, "images") as stage:
        stage.advance(4)
        stage.update(10)
    with console.search(total=3) as view:
        console.monitor.lane(LaneStatus(lane=0, job="trial 7", label=f"cnn > test_resnet {NASTY}", epoch=3, epochs=40))
        view.finished(7, "completed", "cnn > test_resnet", 0.947, 0.001)
        view.finished(8, "stopped", "vit > test_vit", 0.5, 0.001)
        view.finished(9, "failed", NASTY, None, 0.0001, error="loss is NaN\nat step 3")
    console.table([row.record() for row in final_rows()])
    console.ablation([row.record() for row in ablation_rows()])


def _piped(quiet: bool = False) -> str:
    out = io.StringIO()
    _use(Console(quiet=quiet, stream=out, errors=io.StringIO()))
    return out.getvalue()


def _control_characters(text: str) -> set[str]:
    return {char for char in text if char != "\n" and not char.isprintable()}


@pytest.mark.parametrize("forced", [False, True])
def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    text = _piped()
    assert not _control_characters(text)
    lines = text.splitlines()
    assert lines[:3] == ["sweeper: tiny/a1", "16 trials", "images: 10 images"]
    assert re.fullmatch(r"images: 10 images in \d\.\d s \(.*/s\)", lines[3])
    assert lines[4] == "[1/3] trial 7 completed: cnn > test_resnet, accuracy 0.947, 3.60 CPU-s"
    assert lines[6] == "[3/3] trial 9 failed (loss is NaN at step 3): [red]boo [/red], 0.360 CPU-s"
    assert lines[7] == "search: 3/3 trials, 1 stopped, 1 failed, best 0.947 (trial 7)"


def test_quiet_prints_the_table_only() -> None:
    out = io.StringIO()
    Console(stream=out).table([row.record() for row in final_rows()])
    assert _piped(quiet=True) == out.getvalue()


def test_a_terminal_keeps_one_line_a_stage_and_failures() -> None:
    out = _Terminal()
    _use(Console(stream=out))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "trial 9 failed (loss is NaN at step 3)" in text
    assert "trial 7 completed" not in text
    assert text.count("search: 3/3 trials") == 1
    assert "\x1b[31mboo" not in out.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_had_without(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    out = _Terminal()
    console = Console(stream=out)
    _use(console)
    console.message("red", style="red")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", out.getvalue())
    assert console.live == (name == "NO_COLOR")
    if name == "TERM":
        assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("student", [*STUDENTS, "mobilenetv4_conv_small_050.e3000_r224_in1k"])
def test_the_table_fits_80_columns_and_loses_nothing(student: str) -> None:
    out = _Terminal()
    records = [
        final_row(12, trial=247, student=student, loss="ce+kl+align_uniform").record(),
        final_row(13, teacher="vit_small", loss="ce+kl").record(),
    ]
    Console(stream=out).table(records)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "…" not in text
    for figure in ("247", "2x", "339k", "±0.004"):
        assert figure in text
    start, end = lines[0].index("student"), lines[0].index("loss")
    shown = "".join(line[start:end].strip() for line in lines[2:-1])
    assert student in shown


def test_messages_are_never_wrapped_or_read_as_markup() -> None:
    out, path = _Terminal(), "/results/" + "long/" * 40 + "[bold]x[/bold]"
    Console(stream=out).message(path)
    assert out.getvalue() == path + "\n"


def test_errors_go_to_their_own_stream_under_quiet_too() -> None:
    out, errors = io.StringIO(), io.StringIO()
    Console(quiet=True, stream=out, errors=errors).error("a: wrong [x]\nb: wrong")
    assert (out.getvalue(), errors.getvalue()) == ("", "error: a: wrong [x]\nb: wrong\n")


def test_a_stage_that_fails_says_so_and_raises() -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Console(stream=out).stage("targets", 5):
        raise KeyboardInterrupt
    assert "targets: not finished, left after" in out.getvalue()


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, status.FINISHED, ""),
        (KeyboardInterrupt(), status.INTERRUPTED, ""),
        (RunFailed("no room\nat all"), status.FAILED, "no room at all"),
        (ValueError("odd"), status.FAILED, "ValueError: odd"),
    ],
)
def test_a_run_keeps_how_it_ended_in_its_folder(
    tmp_path: Path, error: BaseException | None, state: str, reason: str
) -> None:
    console = Console(stream=io.StringIO())

    def work() -> None:
        with console.run(tmp_path) as monitor:
            monitor.expect("digits/abc", {}, "cpu")
            console.message("a line")
            if error is not None:
                raise error

    with nullcontext() if error is None else pytest.raises(type(error)):
        work()
    found = status.read(tmp_path / status.FILE)
    assert found is not None
    assert (found.label, found.state, found.reason, found.lines) == ("digits/abc", state, reason, ("a line",))


def test_a_class_name_that_the_stream_cannot_encode_does_not_end_the_run() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Console(stream=stream).message("Straße")
    stream.flush()
    assert raw.getvalue() == b"Stra?e" + os.linesep.encode()


def test_the_view_may_be_used_from_threads() -> None:
    console = Console(quiet=True, stream=io.StringIO())
    with console.search(total=400) as view:
        threads = [
            threading.Thread(
                target=lambda start=start: [
                    view.finished(n, "completed", "x", n / 400, 0.0) for n in range(start, start + 100)
                ]
            )
            for start in (0, 100, 200, 300)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert console.monitor.summary() == "400/400 trials, 0 stopped, 0 failed, best 0.998 (trial 399)"


def test_runs_are_listed() -> None:
    out = io.StringIO()
    record = {
        "name": "digits",
        "run_id": "aaa111",
        "state": "finished",
        "trials": 24,
        "best_accuracy_val": None,
        "changed": "2026-01-01 10:00 UTC",
    }
    Console(stream=out).show(runs_table([record]))
    assert out.getvalue().splitlines()[2].split() == [
        "digits",
        "aaa111",
        "finished",
        "24",
        "-",
        "2026-01-01",
        "10:00",
        "UTC",
    ]
