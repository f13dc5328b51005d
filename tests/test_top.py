"""`sweeper top`: on a run in progress, after its end, without its driver, through a pipe, and of a submitted run."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import start
from run_samples import write_run
from statuses import busy
from terminals import Terminal

from sweeper import cli, mirror, run_lock, status, submitted, top
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.results import RunFolder
from sweeper.status import Status
from sweeper.storage import Storage
from sweeper.submitted import Submission

NOW = replace(busy(2), label="digits/0123456789")


def begun(folder: Path, now: Status | None = NOW) -> RunFolder:
    """A run that has begun, and what its driver said last."""
    run = RunFolder(folder / "results" / "digits" / "0123456789")
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_space({"name": "digits"})
    if now is not None:
        say(run, now)
    return run


def say(run: RunFolder, now: Status) -> None:
    part = run.path / "part"
    part.write_bytes(status.to_json(now))
    part.replace(run.path / status.FILE)


def shown(folder: Path, text: str = "digits") -> tuple[int, list[str]]:
    """What it prints into a pipe."""
    result = CliRunner().invoke(cli.main, ["top", text, "--results", str(folder / "results")])
    return result.exit_code, result.output.splitlines()


# ------------------------------------------------------------------------------------------------- once


def test_through_a_pipe_it_is_one_plain_picture(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with run_lock.held(run.path):
        code, lines = shown(tmp_path)
    assert code == 0
    assert lines[0].startswith("sweeper digits/0123456789")
    assert any(line.startswith("lane 1  trial 8") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not any("goes on with it" in line for line in lines), "it is under way: there is nothing to be done"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (status.RUNNING, "nobody works on it any more: its driver was killed"),
        (status.INTERRUPTED, "interrupted; everything finished is kept"),
        (status.FAILED, "failed; everything finished is kept"),
    ],
)
def test_a_run_that_nobody_works_on_says_how_to_go_on(tmp_path: Path, state: str, says: str) -> None:
    run = begun(tmp_path, replace(NOW, state=state, reason="no room" if state == status.FAILED else ""))
    code, lines = shown(tmp_path)
    assert code == 0
    assert lines[-1].startswith(says)
    assert lines[-1].endswith(f"`sweeper run {run.path / 'space.yaml'}` goes on with it")
    assert ("no room" in lines) == (state == status.FAILED)


def test_a_finished_run_points_to_its_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "results" / "digits" / "abc")
    assert shown(tmp_path) == (0, [f"finished; `sweeper show {run.path}` shows its table"])
    say(run, replace(NOW, state=status.FINISHED))
    _, lines = shown(tmp_path)
    assert lines[0].startswith("sweeper digits/0123456789")
    assert lines[-1] == f"finished; `sweeper show {run.path}` shows its table"


def test_a_run_that_has_said_nothing(tmp_path: Path) -> None:
    run = begun(tmp_path, None)
    assert shown(tmp_path) == (0, [f"nobody works on it: `sweeper run {run.path / 'space.yaml'}` goes on with it"])
    with run_lock.held(run.path):
        assert shown(tmp_path) == (0, ["it has said nothing yet; look again in a moment"])


def test_an_unknown_run_and_a_damaged_status_are_the_users(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert shown(tmp_path, "digitz")[0] == 2
    (run.path / status.FILE).write_text("{")
    code, lines = shown(tmp_path)
    assert code == 2
    assert "status.json: is damaged" in lines[0]


def test_on_the_head_of_a_cluster_it_finds_what_was_submitted_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    begun(tmp_path / ".sweeper" / "runs" / "digits-1234567890")
    for text in ("digits", "digits-1234567890", "0123"):
        code, lines = shown(tmp_path, text)
        assert (code, lines[0].split()[1]) == (0, "digits/0123456789")
    assert shown(tmp_path, "other")[0] == 2


def test_where_it_was_submitted_from_it_reads_the_copy_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Submission(name="digits-abcdef0123", place="http://127.0.0.1:1", store=str(tmp_path / "store"))
    submitted.remember(str(tmp_path / "results"), mine)
    assert shown(tmp_path, mine.name) == (0, [f"{mine.name} has not begun yet, as far as the store knows"])
    storage = Storage(mine.store)
    storage.write(f"{mine.prefix}/label", b"digits/0123456789")
    run = begun(tmp_path / "head")
    with submitted.mirror(mine, tmp_path / "head" / "results").kept():
        say(run, NOW)
    code, lines = shown(tmp_path, mine.name)
    assert (code, lines[0].split()[1]) == (0, "digits/0123456789")
    local = begun(tmp_path, replace(NOW, label="digits/local"))
    assert shown(tmp_path)[1][0].split()[1] == "digits/0123456789"
    with run_lock.held(local.path):
        assert shown(tmp_path)[1][0].split()[1] == "digits/local", "what goes on here is meant first"
    source = top.There(mine)
    assert source.read() == NOW
    assert source.is_driven()
    clock = top.time.monotonic() + top.STALE_COPY_S + 1
    monkeypatch.setattr(top.time, "monotonic", lambda: clock)
    assert source.read() == NOW
    assert not source.is_driven(), "its copy has stood still for too long"


def test_a_status_is_copied_to_the_store_with_the_rest(tmp_path: Path) -> None:
    run = begun(tmp_path)
    storage = Storage(str(tmp_path / "store"))
    mirror.Mirror(storage, "p", run.path).push()
    assert storage.read(f"p/{status.FILE}") == status.to_json(NOW)


# ------------------------------------------------------------------------------------------------- the lock


def test_a_look_at_the_lock_takes_it_from_nobody(tmp_path: Path) -> None:
    assert not run_lock.is_held(tmp_path), "no driver ever was there"
    with run_lock.held(tmp_path):
        assert run_lock.is_held(tmp_path)
        assert run_lock.is_held(tmp_path)
        with pytest.raises(InputError, match="another `sweeper run` works on this run"), run_lock.held(tmp_path):
            pass
    assert not run_lock.is_held(tmp_path)


def test_a_driver_that_starts_during_a_look_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock.held(tmp_path):
        pass
    looking = os.open(tmp_path / run_lock.FILE, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: os.close(looking))
    with run_lock.held(tmp_path):
        assert run_lock.is_held(tmp_path)


# ------------------------------------------------------------------------------------------------- live


@contextmanager
def watching(folder: Path, columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    terminal = Terminal(folder, columns, rows, "-m", "sweeper", "top", "digits")
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()


def test_in_a_terminal_it_follows_the_run_to_its_end(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with run_lock.held(run.path), watching(tmp_path) as terminal:
        terminal.until(lambda lines: any(line.startswith("lane 1  trial 8") for line in lines))
        now = replace(NOW, lines=("old", "no node has room"), num_lines=1 + NOW.num_lines, lanes=NOW.lanes[:1])
        say(run, now)
        lines = terminal.until(lambda lines: "no node has room" in lines)
        assert "old" not in lines, "what was printed before is not printed again"
        terminal.until(lambda lines: not any(line.startswith("lane 1") for line in lines))
        say(run, replace(now, state=status.FINISHED, num_lines=now.num_lines))
        assert terminal.finish() == 0
        text = "\n".join(terminal.printed)
    assert "finished after 12 min 20 s" in text
    assert text.count("hypervolume 0.532") == 1, "the last picture stays"
    assert text.rstrip().endswith("shows its table")


def test_ctrl_c_leaves_and_the_run_goes_on(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with run_lock.held(run.path), watching(tmp_path, 120, 40) as terminal:
        terminal.until(lambda lines: any("hypervolume 0.532" in line for line in lines))
        terminal.press_ctrl_c()
        assert terminal.finish() == 0
        assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")
        assert "Traceback" not in terminal.text
        assert "any more" not in terminal.text


def test_it_notices_a_driver_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds the lock and dies; nobody says that the run has ended."""
    run = begun(tmp_path)
    code = f"""import time
from pathlib import Path
from sweeper.run_lock import held
with held(Path({str(run.path)!r})):
    print("held", flush=True)
    time.sleep(600)"""
    driver = start(tmp_path, code=code)
    assert driver.stdout is not None
    driver.stdout.readline()
    monkeypatch.setattr(top, "STALE_S", 0.0)
    source = top.Here(run)
    assert source.is_driven()
    driver.kill()
    driver.wait()
    assert not source.is_driven()
    out = io.StringIO()
    top.follow("digits", str(tmp_path / "results"), Console(stream=out))
    assert "nobody works on it any more" in out.getvalue()


def test_a_driver_that_is_busy_is_not_asked_for_its_lock_while_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = begun(tmp_path), list[Path]()
    monkeypatch.setattr(run_lock, "is_held", lambda path: not asked.append(path))
    source = top.Here(run)
    assert [source.is_driven() for _ in range(5)] == [True] * 5
    assert len(asked) == 1
    os.utime(run.path / status.FILE, (1, 1))
    assert source.is_driven()
    assert len(asked) == 1
