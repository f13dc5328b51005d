"""A signal is not lost, whoever passes over its exception, and a process that was asked to end has one status."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from command_line import environment

SWALLOWS = """
import os, signal, time
from sweeper import interrupt
interrupt.listen()
try:
    os.kill(os.getpid(), signal.SIGNAL)
    time.sleep(10)
except KeyboardInterrupt:
    print("swallowed", interrupt.was_asked())
os.kill(os.getpid(), signal.SIGNAL)  # at once again, as a group's is
print("goes on")
try:
    interrupt.look()
except KeyboardInterrupt:
    print("raised again")
interrupt._first[0] -= 60
os.kill(os.getpid(), signal.SIGNAL)
time.sleep(10)
print("not reached")
"""
BREAKS = """
import os, signal, sys
from sweeper import cli, driver, interrupt
def broken(*arguments):
    interrupt.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise RuntimeError("Ray was on its way out")
driver.execute = broken
sys.argv = ["sweeper", "run", sys.argv[1]]
cli.main()
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_raised_again_where_a_run_looks(name: str) -> None:
    assert signal.Signals[name]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + SWALLOWS
    done = python(code.replace("SIGNAL", name))
    assert done.stdout.splitlines() == ["swallowed True", "goes on", "raised again"]
    assert (done.returncode, done.stderr) == (130, "")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom sweeper import interrupt\n"
    done = python(code + "interrupt.listen(); signal.raise_signal(signal.SIGINT); print(interrupt.was_asked())")
    assert done.stdout == "False\n"


def test_what_breaks_on_the_way_out_is_an_interrupt_all_the_same() -> None:
    done = python(BREAKS, "search_spaces/smoke.yaml")
    assert done.returncode == 130
    assert "everything finished is kept: `sweeper run search_spaces/smoke.yaml` goes on" in done.stderr
    assert "Traceback" not in done.stderr
