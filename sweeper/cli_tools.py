"""The verbs for other tools: `schema` and `completion`. As in `cli`, heavy imports happen inside."""

from __future__ import annotations

import json

import click

from sweeper import completion


@click.command()
@click.argument("name", type=click.Choice(["space", "results"]), default="space")
def schema(name: str) -> None:
    """JSON Schema of a space file, or of what `export --format json` writes.

    Editors complete and check a space file that begins with the line

    \b
    # yaml-language-server: $schema=space.schema.json

    where space.schema.json is what `sweeper schema space` prints.
    """
    if name == "space":
        from sweeper.space_schema import space_schema

        found = space_schema()
    else:
        from sweeper.results_schema import results_schema

        found = results_schema()
    click.echo(json.dumps(found, indent=1, ensure_ascii=False))


@click.command("completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def print_completion(shell: str) -> None:
    """What makes a shell complete verbs, options, runs and kinds.

    \b
    bash   sweeper completion bash > ~/.local/share/bash-completion/completions/sweeper
    zsh    sweeper completion zsh > ~/.zfunc/_sweeper          (with ~/.zfunc in $fpath)
    fish   sweeper completion fish > ~/.config/fish/completions/sweeper.fish
    """
    click.echo(completion.script(shell))
