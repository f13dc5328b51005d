"""What is known here of runs that were submitted to clusters, and what one needs in order to be submitted.

`<results>/.submitted/<name>.json` is one submission; its name is that of the space and the fingerprint of its identity,
so that the same space is the same submission, from any machine. In the store, below `runs/<name>/`: `space.yaml`, what
the head is to run; `label`, the run that it became there (its data is part of that id, and may be out of reach from
here); `head`, who worked on it last; `results/` of that run; `earlier/`, what a warm start asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sweeper import spacefile
from sweeper.archive import find_run
from sweeper.errors import InputError, SpaceError, SweeperError
from sweeper.files import write_atomically
from sweeper.fingerprint import fingerprint
from sweeper.mirror import Mirror
from sweeper.redact import redacted
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile
from sweeper.storage import Storage

FOLDER = ".submitted"
ID_LENGTH = 10
_DATA = ("dataset", "pools")  # sections whose paths are always paths; elsewhere a name may be a model of the hub
_PATHS = ("root", "path")
_EARLIER = ("space.yaml", "trials.parquet")  # of a run, what a warm start reads


@dataclass(frozen=True, kw_only=True)
class Submission:
    """`place` is a launcher's file (absolute) or the address of a dashboard; `is_home`: nothing is left to bring."""

    name: str
    place: str
    store: str
    label: str = ""
    is_home: bool = False

    @property
    def space_name(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def prefix(self) -> str:
        """Where all of it lies in the store."""
        return f"runs/{self.name}"

    def fits(self, text: str) -> bool:
        """Whether a user means it: by its name, the space's, the run's label, or the beginning of either id."""
        ids = [self.name.rpartition("-")[2], self.label.rpartition("/")[2]]
        return text in (self.name, self.space_name, self.label) or any(id.startswith(text) for id in ids if text)

    def labelled(self) -> Submission:
        """With its label, if the head has said it by now."""
        said = None if self.label else Storage(self.store).read(f"{self.prefix}/label")
        return self if said is None else replace(self, label=said.decode())


def name_of(space: SpaceFile) -> str:
    return f"{space.config.name}-{fingerprint(spacefile.identity(space.config))[:ID_LENGTH]}"


def remember(results: str, run: Submission) -> None:
    text = json.dumps(asdict(run), indent=2, sort_keys=True)
    write_atomically(Path(results) / FOLDER / f"{run.name}.json", f"{text}\n".encode())


def known(results: str) -> list[Submission]:
    """Every submission of this folder of results, by name.

    Raises:
        InputError: a file that is none.
    """
    found = []
    for path in sorted((Path(results) / FOLDER).glob("*.json")):
        try:
            found.append(Submission(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is damaged ({error}); remove it: `sweeper submit` writes it again") from error
    return found


def find(results: str, text: str) -> Submission | None:
    """The one that a user means; None where nothing fits.

    Raises:
        InputError: several fit.
    """
    runs = known(results)
    fits = [run for run in runs if run.fits(text)]
    if not fits:
        fits = [run for run in map(_labelled, runs) if run.fits(text)]
    fits = [run for run in fits if run.name == text] or fits
    if len(fits) > 1:
        raise InputError(f"run: {text!r} fits {len(fits)} submissions; name one: {', '.join(r.name for r in fits)}")
    return fits[0] if fits else None


def check(space: SpaceFile, store: str) -> None:
    """Refuse what a cluster can not see: folders of this machine, and a store that only this machine has.

    Raises:
        InputError: with every such path.
    """
    if redacted(store) != store:
        raise InputError(
            "--store: holds credentials, which a cluster's list of jobs would show; give the address without them, and "
            "the keys to the head by its role or its environment"
        )
    if "://" not in store and not Path(store).is_absolute():
        raise InputError(
            f"--store: {store!r} is a folder of this machine; a cluster needs one that it shares with it: "
            "s3://BUCKET/PREFIX, or the absolute path of a folder that is mounted on all nodes and here"
        )
    config = spacefile.resolved(space.config)
    sections = {name: config.get(name) or {} for name in ("dataset", "pools", "teachers", "synthetic", "trial")}
    wrong = []
    for path, value in _texts(sections):
        parts = path.split(".")
        is_path = parts[0] in _DATA and bool({*_PATHS} & {*parts})
        if "://" not in value and not Path(value).expanduser().is_absolute() and (is_path or Path(value).exists()):
            wrong.append(
                f"{path}: {value!r} is a local folder or file, which is not on the cluster; put it on s3://, or give "
                f"the absolute path at which every node has it ({space.origin(path)})"
            )
    if wrong:
        raise SpaceError(wrong)


def earlier(space: SpaceFile, results: str) -> list[RunFolder]:
    """The runs that a warm start asks for, as they lie here.

    Raises:
        InputError: one is not there, or is meant by a path.
    """
    found = []
    for number, name in enumerate(space.config.search.warm_start):
        path = f"search.warm_start.{number}"
        if (Path(name) / "space.yaml").is_file():
            raise InputError(f"{path}: {name!r} is a folder; name the run by its id ({space.origin(path)})")
        try:
            found.append(find_run(results, name))
        except InputError as error:
            raise InputError(f"{path}: {error} ({space.origin(path)})") from error
    return found


def send(run: Submission, space: SpaceFile, runs: Sequence[RunFolder]) -> None:
    """Put into the store what the head needs: the space with its overrides, and earlier runs."""
    import yaml

    storage = Storage(run.store)
    for folder in runs:
        for name in _EARLIER:
            if (folder.path / name).exists():
                storage.write(f"{run.prefix}/earlier/{folder.label}/{name}", (folder.path / name).read_bytes())
    text = yaml.safe_dump(spacefile.resolved(space.config), sort_keys=False, allow_unicode=True)
    storage.write(f"{run.prefix}/space.yaml", text.encode())


def mirror(mine: Submission, results: Path) -> Mirror:
    """Of its results, between the store and the folder of results on either side."""
    prefix = f"{mine.prefix}/results/{mine.space_name}"
    return Mirror(Storage(mine.store), prefix, results / mine.space_name)


def _labelled(run: Submission) -> Submission:
    """As far as its store can be reached, which may be another run's and long gone."""
    with suppress(SweeperError):
        return run.labelled()
    return run


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with its dotted path."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        below = f"{path}.{key}" if path else str(key)
        if isinstance(item, str):
            yield below, item
        else:
            yield from _texts(item, below)
