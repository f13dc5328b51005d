"""The verb that writes a first space file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write; by default NAME.yaml.")
@click.option("--name", help="What the runs are called; by default the folder's name.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    default=10,
    show_default=True,
    help="About how long the sweep should take here.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(folder: str, out: Path | None, name: str | None, minutes: float, force: bool) -> None:
    """Look at the images in FOLDER and write a first space file for them.

    FOLDER holds one folder of images a class, with train/, val/ and test/ above them or not; or parquet files, or tar
    shards. The file is commented, and its choices fit the data and this machine.
    """
    from sweeper import init_space
    from sweeper.console import Console

    init_space.write(folder, Console(), out=out, name=name, minutes=minutes, force=force)
