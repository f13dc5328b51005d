"""The command line: verbs only. Heavy imports happen inside a verb, so that `sweeper --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sweeper import __version__, cli_cluster, cli_init, cli_models, cli_tools, completion, interrupt
from sweeper.errors import users_error

if TYPE_CHECKING:
    from sweeper.prepared import Options


class _Verbs(click.Group):
    """Turns a user's mistake into its message and exit status, and an interrupt into how to go on."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            _interrupted()
        except Exception as error:
            known = users_error(error)
            if interrupt.was_asked() and (known is None or known.exit_status != interrupt.STATUS):
                _interrupted()  # whatever broke on the way out
            if known is None:
                raise
            _say(str(known))
            raise SystemExit(known.exit_status) from None


def _interrupted() -> NoReturn:
    _say(f"interrupted; everything finished is kept: `sweeper {' '.join(sys.argv[1:])}` goes on from here")
    interrupt.leave()


def _say(message: str) -> None:
    from sweeper.console import Console

    console = Console()
    for line in message.splitlines():
        console.error(line)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sweeper")
def main() -> None:
    """Which small model, taught by which big one, with which loss and how much synthetic data?

    `sweeper run SPACE` answers with a table of accuracy against GPU-hours.
    """


def _space_options(command: Any) -> Any:
    for option in reversed(
        [
            click.argument("space", type=click.Path(path_type=Path)),
            click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="Override a leaf of the file."),
            click.option("--results", default="results", show_default=True, help="Where runs land."),
            click.option(
                "--store",
                default=".sweeper/store",
                envvar="SWEEPER_STORE",
                show_default=True,
                help="Where artifacts are kept: a folder or s3://...",
            ),
            click.option("--quiet", is_flag=True, help="Print the table only."),
        ]
    ):
        command = option(command)
    return command


def _options(results: str, store: str, address: str | None = None) -> Options:
    from sweeper.prepared import Options

    return Options(results=results, store=store, address=address)


@main.command()
@_space_options
@click.option("--cluster", type=click.Path(path_type=Path), help="For a cluster as Ray's launcher file has it.")
@click.option("--price", type=click.FloatRange(min=0), help="Dollars a device-hour.")
@click.option("--calibrate/--no-calibrate", default=None, help="Time all models anew, or none; by default new ones.")
def plan(
    space: Path,
    overrides: tuple[str, ...],
    results: str,
    store: str,
    quiet: bool,
    cluster: Path | None,
    price: float | None,
    calibrate: bool | None,
) -> None:
    """What would be built and trained, and what it would cost. Builds nothing."""
    from sweeper import planning, spacefile
    from sweeper.console import Console

    read, options = spacefile.load(space, overrides), _options(results, store)
    planning.show(read, options, Console(quiet=quiet), cluster=cluster, price=price, calibrate=calibrate)


@main.command()
@_space_options
@click.option("--address", help="Join a running Ray cluster: auto, host:port or ray://host:port.")
@click.option("--rehearse", is_flag=True, help="The whole path in minutes, with little data; keeps nothing.")
def run(
    space: Path,
    overrides: tuple[str, ...],
    results: str,
    store: str,
    quiet: bool,
    address: str | None,
    rehearse: bool,
) -> None:
    """Run a sweep, or go on where it stopped."""
    from sweeper import spacefile
    from sweeper.console import Console

    read, console = spacefile.load(space, overrides), Console(quiet=quiet)
    if rehearse:
        from sweeper import rehearsal

        rehearsal.run(read, console, address)
    else:
        from sweeper import driver

        driver.execute(read, _options(results, store, address), console)


@main.command("ls")
@click.option("--results", default="results", show_default=True, help="Where runs land.")
def list_runs(results: str) -> None:
    """List all runs."""
    from sweeper import archive
    from sweeper.console import Console
    from sweeper.layout import runs_table

    console = Console()
    found = archive.list_runs(results)
    if not found:
        console.message(f"no runs below {results}/ yet; `sweeper run SPACE` makes one")
        return
    console.show(runs_table([run.summary() for run in found]))


@main.command()
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@click.option("--results", default="results", show_default=True, help="Where runs land.")
def show(run_name: str, results: str) -> None:
    """Show a run's Pareto table again."""
    from sweeper import archive, driver
    from sweeper.console import Console

    driver.show(archive.find_run(results, run_name), Console(), fresh=True)


@main.command()
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@click.option("--results", default="results", show_default=True, help="Where runs land.")
def top(run_name: str, results: str) -> None:
    """Watch a run from another shell, until it ends; Ctrl-C leaves, and the run goes on."""
    from sweeper import top as watching
    from sweeper.console import Console

    watching.follow(run_name, results, Console())


@main.command()
@click.argument("run_names", metavar="RUN RUN...", nargs=-1, required=True, shell_complete=completion.runs)
@click.option("--out", help="Folder for compare.csv, .tex, .png and .pdf.")
@click.option("--results", default="results", show_default=True, help="Where runs land.")
def compare(run_names: tuple[str, ...], out: str | None, results: str) -> None:
    """Compare two or more runs: their fronts on test, the difference in hypervolume, and where their spaces differ."""
    from sweeper import archive, comparison
    from sweeper.console import Console
    from sweeper.layout import fitted

    console = Console()
    found = comparison.compare([archive.find_run(results, name) for name in run_names])
    console.show(fitted(comparison.table(found), console.width))
    for line in comparison.lines(found):
        console.message(line)
    for path in comparison.write(found, out) if out else ():
        console.message(str(path))


main.add_command(cli_cluster.submit)
main.add_command(cli_cluster.attach)
main.add_command(cli_cluster.down)
main.add_command(cli_cluster.work)
main.add_command(cli_init.init)
main.add_command(cli_models.export)
main.add_command(cli_models.predict)
main.add_command(cli_tools.schema)
main.add_command(cli_tools.print_completion)


@main.group()
def store() -> None:
    """Look after the artifacts."""


_store_option = click.option("--store", "uri", default=".sweeper/store", envvar="SWEEPER_STORE", show_default=True)


@store.command("ls")
@_store_option
def store_list(uri: str) -> None:
    """List artifacts with their size and device time."""
    from sweeper.console import Console
    from sweeper.store import Store

    console = Console()
    for record in Store(uri).records():
        size = sum(entry.size for entry in record.files)
        seconds = f"{record.charge.seconds:.1f} s on {record.charge.device}" if record.charge else "no device time"
        console.message(f"{record.key[:12]}  {record.kind:<10} {size:>12,} bytes  {record.rows or '':>8}  {seconds}")


@store.command("verify")
@_store_option
@click.option("--deep", is_flag=True, help="Read every file and compare its sha256.")
def store_verify(uri: str, deep: bool) -> None:
    """Check that every artifact is whole; exit status 1 where one is not."""
    from sweeper.console import Console
    from sweeper.store import Store

    console = Console()
    findings = Store(uri).verify(deep)
    for finding in findings:
        console.error(finding)
    if findings:
        raise SystemExit(1)
    console.message("every artifact is whole")


@store.command("gc")
@_store_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def store_gc(uri: str, dry_run: bool) -> None:
    """Delete files that no artifact refers to."""
    from sweeper.console import Console
    from sweeper.store import Store

    console = Console()
    garbage = Store(uri).gc(dry_run)
    for item in garbage:
        console.message(f"{item.path}  {item.bytes:,} bytes")
    console.message(f"{len(garbage)} {'would be' if dry_run else 'were'} deleted")


@main.command()
@click.argument("family", required=False, shell_complete=completion.families)
def kinds(family: str | None) -> None:
    """What can stand after `kind:`."""
    from sweeper import registry
    from sweeper.losses import ONLINE

    for name in [family] if family else registry.FAMILIES:
        click.echo(f"{name}:")
        for kind, line in registry.kinds(name).items():
            click.echo(f"  {kind:<16} {line}")
            if name == "losses":
                module = registry.load(name, kind)
                needs = ", ".join(sorted(module.NEEDS))
                live = "; runs the teacher in the loop" if module.NEEDS & ONLINE else ""
                click.echo(
                    f"  {'':<16} needs {needs}{live}; published weight {module.PUBLISHED_WEIGHT:g}; {module.PAPER}"
                )
