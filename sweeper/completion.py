"""Completion in a shell: click's own scripts, and the words that only sweeper knows: runs and families.

A key press waits for it, so that nothing is imported here but click; runs are found by the names of their folders.
"""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "sweeper"
VARIABLE = "_SWEEPER_COMPLETE"


def script(shell: str) -> str:
    """What the shell has to read; it asks the program itself for words, through an environment variable."""
    found = get_completion_class(shell)
    assert found is not None
    return found(click.Group(PROGRAM), {}, PROGRAM, VARIABLE).source()


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs as name/run id, the one that changed last coming first; a run id alone is completed, too."""
    results = Path(context.params.get("results") or "results")
    there = [path.parent for path in results.glob("*/*/space.yaml")]
    there.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    found = []
    for path in there:
        label = f"{path.parent.name}/{path.name}"
        if label.startswith(incomplete) or path.name.startswith(incomplete):
            state = "finished" if (path / "done.json").exists() else "unfinished"
            found.append(CompletionItem(label, help=state))
    return found


def families(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The families of `sweeper kinds`."""
    from sweeper.registry import FAMILIES

    return [name for name in FAMILIES if name.startswith(incomplete)]
