"""A submitted run, on the head of its cluster: what the job does.

`python -m sweeper on-head NAME --store URI` reads the space that `submission` sent through the store, and runs it with
a copy of its results there, where this head's next life, another head, or whoever submitted it finds them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from sweeper import driver, spacefile, submitted
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.jobs import Interrupted
from sweeper.layout import rich_table
from sweeper.lease import hold
from sweeper.mirror import Mirror
from sweeper.prepared import Options, prepare
from sweeper.spacefile import SpaceFile
from sweeper.storage import Storage
from sweeper.store import Store
from sweeper.submitted import Submission

FOLDER = Path(".sweeper") / "runs"  # below the home of the head's user


def execute(name: str, store: str, console: Console) -> None:
    """Run the space that was sent, with a copy of its results in the store.

    Raises:
        SweeperError: as `driver.execute`; the store is not the one that the space was sent to.
    """
    mine, root = Submission(name=name, place="", store=store), Path.home() / FOLDER / name
    storage = Storage(store)
    sent = storage.read(f"{mine.prefix}/space.yaml")
    if sent is None:
        raise InputError(
            f"store: {store} holds no {mine.prefix}/space.yaml here on the cluster: it is not the place that "
            "`sweeper submit` wrote it to; a folder has to be mounted at the same path on all nodes"
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / "space.yaml").write_bytes(sent)
    space = spacefile.load(root / "space.yaml")
    _take_up_earlier(mine, root)
    mirror = submitted.mirror(mine, root / "results")
    options = Options(results=str(root / "results"), store=store, address="auto")
    try:
        # One driver a run, whatever clusters there are. Who holds an artifact, below, never waits for a run.
        with hold(Store(store), {name: "the same run"}, console.message):
            mirror.pull(replace=not _was_last(mine, root))
            with mirror.kept():
                _run(space, options, console, lambda label: storage.write(f"{mine.prefix}/label", label.encode()))
    except KeyboardInterrupt:
        raise Interrupted("stopped; everything finished is kept: `sweeper submit` with the same file goes on") from None


def _run(space: SpaceFile, options: Options, console: Console, say_label: Callable[[str], None]) -> None:
    """As `driver.execute` but for the table, which is shown where the results come home to."""
    prepared = prepare(space, options)
    say_label(prepared.folder.label)
    if not prepared.folder.finished:
        compared = driver.work(prepared, options, console)
        if compared is not None:
            console.message()
            console.show(rich_table(compared))


def _was_last(mine: Submission, root: Path) -> bool:
    """Whether this head worked on the run last: then its disk is ahead of the store, and else behind."""
    storage, known = Storage(mine.store), root / "head"
    if not known.exists():
        known.write_text(secrets.token_hex(8))
    was_last = storage.read(f"{mine.prefix}/head") == known.read_bytes()
    storage.write(f"{mine.prefix}/head", known.read_bytes())
    return was_last


def _take_up_earlier(mine: Submission, root: Path) -> None:
    """Earlier runs beside this one, where a warm start looks for them; as links, which the mirror leaves alone."""
    names = Mirror(Storage(mine.store), f"{mine.prefix}/earlier", root / "earlier").pull(replace=True)
    for label in {name.rpartition("/")[0] for name in names}:
        link = root / "results" / label
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(root / "earlier" / label)
