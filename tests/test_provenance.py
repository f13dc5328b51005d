from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sweeper import provenance


def test_the_command_can_be_typed_again() -> None:
    line = provenance.command_line(["/opt/venv/bin/sweeper", "run", "my space.yaml", "--set", "a.b=c"])
    assert shlex.split(line) == ["sweeper", "run", "my space.yaml", "--set", "a.b=c"]


def test_credentials_of_a_uri_are_left_out() -> None:
    line = provenance.command_line(["sweeper", "run", "x.yaml", "--store", "s3://key:secret@bucket/path"])
    assert "secret" not in line
    assert "***@bucket/path" in line


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_our_own_tree_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    module = tmp_path / "sweeper" / "provenance.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.commit() is None
    git("init", "--quiet")
    assert provenance.commit() is None
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    assert provenance.commit() == git("rev-parse", "HEAD")
    module.write_text("# changed")
    assert provenance.commit() == git("rev-parse", "HEAD") + "+changes"
    installed = tmp_path / "venv" / "lib" / "sweeper" / "provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() is None
