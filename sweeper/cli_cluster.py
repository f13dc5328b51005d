"""The verbs for a run on a cluster: `submit`, `attach`, `down`. As in `cli`, heavy imports happen inside."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from sweeper.errors import InputError

if TYPE_CHECKING:
    from sweeper.submission import Desk

_results = click.option("--results", default="results", show_default=True, help="Where runs land.")
_address = click.option("--address", metavar="URL", help="A cluster that is up: its dashboard, http://127.0.0.1:8265.")
_quiet = click.option("--quiet", is_flag=True, help="Print the table only.")


@click.command(short_help="Run a sweep on a cluster, and follow it.")
@click.argument("files", metavar="[CLUSTER] SPACE", nargs=-1, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Override a leaf of the file.")
@click.option(
    "--store", envvar="SWEEPER_STORE", help="What this machine shares with the cluster: s3://BUCKET/PREFIX or a mount."
)
@_results
@_address
@click.option("--yes", "-y", is_flag=True, help="Bring the cluster up without asking.")
@click.option("--detach", is_flag=True, help="Do not follow the run.")
@_quiet
def submit(
    files: tuple[Path, ...],
    overrides: tuple[str, ...],
    store: str | None,
    results: str,
    address: str | None,
    yes: bool,
    detach: bool,
    quiet: bool,
) -> None:
    """Run a sweep on a cluster, and follow it as if it ran here. Ctrl-C detaches: the run goes on.

    CLUSTER is a file of Ray's cluster launcher, which is brought up if it is not; --address does without. The same
    command again follows the run that is there, goes on with one that was cut off, or shows the table.
    """
    if len(files) != (1 if address else 2):
        raise InputError("submit: needs CLUSTER.yaml and SPACE, or SPACE and --address http://HOST:PORT")
    from sweeper import spacefile, submission

    if not store:
        raise InputError(
            "--store: is missing; name a place that the cluster shares with this machine: s3://BUCKET/PREFIX"
        )
    place = _place(files[0] if address is None else None, address)
    assert place is not None
    space = spacefile.load(files[-1], overrides)
    raise SystemExit(submission.submit(space, place, store, _desk(results, quiet=quiet, yes=yes), detach=detach))


@click.command(short_help="Follow a submitted run again, or bring it home.")
@click.argument("run_name", metavar="RUN")
@click.option("--cluster", type=click.Path(path_type=Path), help="Its cluster, where it was not submitted from here.")
@_address
@_results
@click.option("--stop", is_flag=True, help="End it; everything finished is kept.")
@_quiet
def attach(run_name: str, cluster: Path | None, address: str | None, results: str, stop: bool, quiet: bool) -> None:
    """Follow a submitted run again; of one that has ended, bring its results home and show its table."""
    from sweeper import submission

    raise SystemExit(submission.attach(run_name, _place(cluster, address), _desk(results, quiet=quiet), stop=stop))


@click.command(short_help="End a cluster, once its runs are home.")
@click.argument("cluster", type=click.Path(path_type=Path))
@_results
@click.option("--force", is_flag=True, help="Even if a run goes on there, or its results can not be brought home.")
def down(cluster: Path, results: str, force: bool) -> None:
    """Bring home what was submitted to a cluster, and end all of its nodes with `ray down`."""
    from sweeper import submission

    place = _place(cluster, None)
    assert place is not None
    submission.down(Path(place), _desk(results), force=force)


@click.command("on-head", hidden=True)
@click.argument("name")
@click.option("--store", required=True)
@click.option("--quiet", is_flag=True)
def work(name: str, store: str, quiet: bool) -> None:
    """What `submit` has the head do."""
    from sweeper import on_head
    from sweeper.console import Console

    on_head.execute(name, store, Console(quiet=quiet))


def _place(cluster: Path | None, address: str | None) -> str | None:
    if cluster is not None and address is not None:
        raise InputError("--address: names a cluster, and so does the file; give one of them")
    if address is not None:
        if not address.startswith(("http://", "https://")):
            raise InputError(f"--address: {address!r} is no address of a dashboard, such as http://127.0.0.1:8265")
        if address.startswith("http://") and not _stays_here(urlsplit(address).hostname or ""):
            click.echo(f"{address} is not encrypted: whoever sees its network reads Ray's token on it", err=True)
        return address.rstrip("/")
    if cluster is None:
        return None
    if not cluster.is_file():
        raise InputError(f"{cluster}: is no file; CLUSTER is one of Ray's launcher, such as cluster/aws.yaml")
    return str(cluster.resolve())


def _stays_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _desk(results: str, *, quiet: bool = False, yes: bool = False) -> Desk:
    from sweeper.console import Console
    from sweeper.submission import Desk

    console = Console(quiet=quiet)

    def agree(question: str) -> None:
        if yes:
            console.message(question.removesuffix(" Go on?"))
        elif not sys.stdin.isatty():
            raise InputError(f"{question.removesuffix(' Go on?')} It costs money: say so with --yes")
        elif not click.confirm(question):
            raise InputError("not brought up; nothing was started")

    return Desk(results=results, console=console, agree=agree)
