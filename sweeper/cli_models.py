"""The verbs that hand students over: `export` (tables too) and `predict`. As in `cli`, heavy imports happen inside."""

from __future__ import annotations

import json

import click

from sweeper import completion
from sweeper.errors import InputError

ALL_FORMATS = "csv,parquet,md,tex,html,json,png,pdf"


@click.command(short_help="Hand over a run: its table in any form, or a student ready to use.")
@click.argument("run_name", metavar="RUN", shell_complete=completion.runs)
@click.option("--format", "formats", help=f"The table in these forms.  [default: {ALL_FORMATS}]")
@click.option("--out", help="Folder for the table.  [default: .]")
@click.option("--model", "rank", type=int, metavar="N", help="The student of row N (the table's first column).")
@click.option("--to", help="Folder for the student; new, empty or an earlier export.")
@click.option("--no-onnx", is_flag=True, help="Leave model.onnx out.")
@click.option("--force", is_flag=True, help="Write into a folder that holds other files, which stay.")
@click.option("--results", default="results", show_default=True, help="Where runs land.")
@click.option(
    "--store",
    default=".sweeper/store",
    envvar="SWEEPER_STORE",
    show_default=True,
    help="Where images are looked for on which model.onnx is checked.",
)
def export(
    run_name: str,
    formats: str | None,
    out: str | None,
    rank: int | None,
    to: str | None,
    no_onnx: bool,
    force: bool,
    results: str,
    store: str,
) -> None:
    """Hand over a run: its table, or a student.

    \b
    sweeper export RUN [--format csv,md] [--out DIR]   the table and the picture
    sweeper export RUN --model N --to DIR              the student of row N for timm and ONNX Runtime, with a model card
    """
    given = {"--format": formats, "--out": out, "--to": to, "--no-onnx": no_onnx, "--force": force}
    tables_only, model_only = ("--format", "--out"), ("--to", "--no-onnx", "--force")
    stray = [name for name in (model_only if rank is None else tables_only) if given[name]]
    if stray and rank is None:
        raise InputError(f"{stray[0]}: belongs to a student; name its row with --model N")
    if stray:
        raise InputError(
            f"{stray[0]}: belongs to the table; a student (--model) goes to --to DIR, in a command of its own"
        )
    if rank is not None and not to:
        raise InputError("--model: needs --to DIR, the folder to write the student to")

    from sweeper import archive
    from sweeper.console import Console

    console, run = Console(), archive.find_run(results, run_name)
    if rank is None or to is None:
        for path in archive.export(run, (formats or ALL_FORMATS).split(","), out or "."):
            console.message(str(path))
        return

    from sweeper.export_model import export_model
    from sweeper.store import Store

    done = export_model(run, rank, to, Store(store), force=force, with_onnx=not no_onnx)
    for line in [*map(str, done.paths), *done.lines()]:
        console.message(line)


@click.command()
@click.argument("folder", metavar="DIR")
@click.argument("images", metavar="IMAGES...", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many classes an image.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON an image.")
def predict(folder: str, images: tuple[str, ...], top: int, as_json: bool) -> None:
    """Classes of image files, by the student in DIR.

    DIR is what `sweeper export RUN --model N --to DIR` wrote, or models/TRIAL of a run. IMAGES are files, or folders
    that are searched to the bottom. A line an image, with tabs between: path, class, probability (and again for
    --top). What can not be read is named on stderr, and the exit status is 1.
    """
    from sweeper import predict as prediction
    from sweeper.console import Console
    from sweeper.wording import one_line

    console = Console()
    classifier, num_failed = prediction.load(folder), 0
    for found in prediction.predict(classifier, images, top):
        if found.error:
            num_failed += 1
            console.error(f"{one_line(str(found.path))}: {found.error}")
        elif as_json:
            classes = [{"class": name, "probability": share} for name, share in found.classes]
            click.echo(json.dumps({"path": str(found.path), "classes": classes}))
        else:
            cells = [cell for name, share in found.classes for cell in (one_line(name), f"{share:.4f}")]
            click.echo("\t".join([one_line(str(found.path), 10_000), *cells]))
    if num_failed:
        raise SystemExit(1)
