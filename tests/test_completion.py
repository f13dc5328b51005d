"""Completion in a shell: verbs and options by click, runs and families by sweeper, all without anything heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, ShellComplete
from click.testing import CliRunner
from command_line import environment

from sweeper import completion
from sweeper.cli import main
from sweeper.registry import FAMILIES


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs; the second is the latest, and one is finished."""
    monkeypatch.chdir(tmp_path)
    for age, label in enumerate(("digits/bbb222", "digits/aaa111", "flowers/ccc333")):
        folder = tmp_path / "results" / label
        folder.mkdir(parents=True)
        (folder / "space.yaml").touch()
        os.utime(folder, (1000 - age, 1000 - age))
    (tmp_path / "results" / "digits" / "bbb222" / "done.json").touch()
    (tmp_path / "results" / "notes").mkdir()
    return tmp_path


def completed(arguments: list[str], incomplete: str) -> list[tuple[str, str | None]]:
    """Words and their descriptions, as a shell gets them after `sweeper ARGUMENTS INCOMPLETE`."""
    found = ShellComplete(main, {}, completion.PROGRAM, completion.VARIABLE).get_completions(arguments, incomplete)
    return [(item.value, item.help) for item in found]


@pytest.mark.parametrize("verb", ["show", "export", "compare"])
def test_a_run_is_completed_the_latest_first(runs: Path, verb: str) -> None:
    assert completed([verb], "") == [
        ("digits/bbb222", "finished"),
        ("digits/aaa111", "unfinished"),
        ("flowers/ccc333", "unfinished"),
    ]
    assert [word for word, _ in completed([verb], "dig")] == ["digits/bbb222", "digits/aaa111"]
    assert [word for word, _ in completed([verb], "ccc")] == ["flowers/ccc333"]
    assert completed([verb], "x") == []


def test_runs_are_looked_for_where_the_results_are(runs: Path) -> None:
    (runs / "results").rename(runs / "elsewhere")
    assert completed(["show"], "") == []
    assert len(completed(["show", "--results", "elsewhere"], "")) == 3


def test_families_verbs_options_and_formats_of_schemas_are_completed() -> None:
    assert [word for word, _ in completed(["kinds"], "")] == [*FAMILIES]
    assert [word for word, _ in completed(["kinds"], "t")] == ["teachers", "trackers"]
    assert ("show", "Show a run's Pareto table again.") in completed([], "sh")
    assert "--rehearse" in [word for word, _ in completed(["run"], "--re")]
    assert [word for word, _ in completed(["schema"], "")] == ["space", "results"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_gets_its_script(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"{completion.VARIABLE}={shell}_complete" in done.output


def test_another_shell_is_refused() -> None:
    done = CliRunner().invoke(main, ["completion", "csh"])
    assert done.exit_code == 2
    assert "'csh' is not one of 'bash', 'zsh', 'fish'" in done.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_itself_completes_a_run(runs: Path) -> None:
    """Its script is read, and called as a press of the tab key does."""
    (runs / "sweeper").write_text(f'#!/bin/sh\nexec {sys.executable} -m sweeper "$@"\n')
    (runs / "sweeper").chmod(0o755)
    script = BashComplete(main, {}, completion.PROGRAM, completion.VARIABLE).source()
    asked = 'COMP_WORDS=(sweeper show fl); COMP_CWORD=2; _sweeper_completion sweeper; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"complete() {{ :; }}\n{script}\n{asked}"],
        env={**environment(), "PATH": f"{runs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["flowers/ccc333"], done.stderr
