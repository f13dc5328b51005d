"""Sweeps from Python: `sweeper.run(space) -> Results` and `sweeper.open(run) -> Results`, tables as data frames.

    results = sweeper.run("search_spaces/smoke.yaml", overrides={"search.trials": 8})
    results.pareto, results.best(), results.model(1), results.plot()

It is the command line's run, with the same identity and the same folder: what one began the other goes on with.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sweeper import archive, driver, interrupt, results_schema, spacefile
from sweeper.console import Console
from sweeper.errors import InputError
from sweeper.export_model import find_row
from sweeper.prepared import Options, prepare
from sweeper.results import RunFolder
from sweeper.spacefile import SpaceFile

if TYPE_CHECKING:
    import pandas as pd

Space = str | os.PathLike[str] | Mapping[str, Any] | SpaceFile


@dataclass(frozen=True)
class Picture:
    """A PNG, which a notebook shows."""

    png: bytes = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True)
class Results:
    """A run's folder: its tables as data frames, its students as models. Everything is read when it is asked for.

    A table that the run does not have (yet) is an empty frame with its columns. `sweeper schema results` says what each
    column means.
    """

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def finished(self) -> bool:
        return self.folder.finished

    @property
    def pareto(self) -> pd.DataFrame:
        """The front, retrained: one row a student, by `rank`."""
        return self._frame("pareto")

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial of the search; `config` is the sampled point, a nested mapping."""
        return self._frame("trials")

    @property
    def curves(self) -> pd.DataFrame:
        """Every report of every trial, an epoch each."""
        return self._frame("curves")

    @property
    def ledger(self) -> pd.DataFrame:
        """Every charge of device time."""
        return self._frame("ledger")

    @property
    def ablation(self) -> pd.DataFrame:
        """The arms of the method's claim, named by `role`."""
        return self._frame("ablation")

    @property
    def finalists(self) -> pd.DataFrame:
        """Every retraining, by seed."""
        return self._frame("finalists")

    @property
    def importance(self) -> pd.DataFrame:
        """How much of an objective's variation each setting explains."""
        return self._frame("importance")

    @property
    def hypervolume(self) -> pd.DataFrame:
        """How good the front had become after so many device-seconds."""
        return self._frame("hypervolume")

    def best(self) -> pd.Series[Any]:
        """The first row of `pareto`.

        Raises:
            InputError: the run is not finished.
        """
        self._check_has_a_table()
        return self.pareto.iloc[0]

    def model(self, rank: int = 1) -> Any:
        """The student of a row of `pareto`: a timm model with its trained weights, on the CPU, in evaluation mode.

        It takes float images [B, 3, S, S] in [0, 1], normalised by the mean and std of its `pretrained_cfg`.

        Raises:
            InputError: no such row, or its student is not there any more.
        """
        from sweeper import student

        return student.load(find_row(self.folder, rank)[1]).model

    def plot(self) -> Picture:
        """The picture of the front.

        Raises:
            InputError: the run is not finished.
        """
        self._check_has_a_table()
        return Picture((self.path / "pareto.png").read_bytes())

    def document(self) -> dict[str, Any]:
        """Everything as `sweeper export --format json` writes it."""
        return results_schema.document(self.folder)

    def _check_has_a_table(self) -> None:
        if not self.finished:
            raise InputError(f"run: {self.folder.label} is not finished; `sweeper.run` with its space goes on with it")

    def _frame(self, table: str) -> pd.DataFrame:
        import pandas as pd

        records = getattr(self.folder, f"read_{table}")()
        return pd.DataFrame(records) if records else pd.DataFrame(columns=[*results_schema.TABLES[table][1]])

    def _repr_html_(self) -> str:
        columns = ["rank", "teacher", "student", "loss", "synthetic_ratio", "accuracy_test", "gpu_hours", "params"]
        return f"<p><b>{self.folder.label}</b></p>{self.pareto[columns].to_html(index=False)}"

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"<sweeper.Results {self.folder.label}: {state}, {len(self.trials)} trials, front of {len(self.pareto)}>"


def run(
    space: Space,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    store: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] = "results",
    address: str | None = None,
    quiet: bool = True,
) -> Results:
    """Run a sweep, or go on where it stopped, or open the finished one.

    Args:
        space: a space file, its content as a mapping, or a file that was read (`sweeper.spacefile.load`).
        overrides: leaves of the file by dotted path (`{"search.trials": 8}`), or texts as `--set` takes them.
        store: where artifacts are kept: a folder or a URI. By default $SWEEPER_STORE, or `.sweeper/store`.
        results: where runs land.
        address: of a Ray cluster to join; None starts Ray on this machine, or uses the session that is there.
        quiet: say nothing; else lines about its progress are printed.

    Raises:
        InputError: the space is wrong; every problem at once.
        RunFailed: the run could not be finished; what was done is kept.
    """
    read = _read(space, overrides)
    where = os.environ.get("SWEEPER_STORE", Options.store) if store is None else store
    options = Options(results=os.fspath(results), store=os.fspath(where), address=address)
    prepared = prepare(read, options)
    if not prepared.folder.finished:
        with interrupt.contained(), _without_notices():
            driver.work(prepared, options, _console(quiet))
    return Results(prepared.folder)


def open(run: str | os.PathLike[str], *, results: str | os.PathLike[str] = "results") -> Results:
    """A run that is there: by its folder, its id or the beginning of it, or its name where that has one run.

    Raises:
        InputError: no such run, or several.
    """
    return Results(archive.find_run(results, os.fspath(run)))


def _read(space: Space, overrides: Mapping[str, Any] | Sequence[str]) -> SpaceFile:
    if isinstance(overrides, Mapping):
        overrides = [f"{path}={json.dumps(value)}" for path, value in overrides.items()]
    if isinstance(space, SpaceFile):
        if overrides:
            raise InputError("overrides: belong to a file or a mapping; this space was read already")
        return space
    if not isinstance(space, Mapping):
        return spacefile.load(os.fspath(space), overrides)
    with TemporaryDirectory(prefix="sweeper-") as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(json.dumps(space, indent=1), encoding="utf-8")  # all JSON is YAML, and keeps texts texts
        return spacefile.load(path, overrides)


@contextmanager
def _without_notices() -> Iterator[None]:
    """In a notebook Ray and tqdm ask for widgets, which nothing here uses."""
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield


def _console(quiet: bool) -> Console:
    nowhere = io.StringIO()
    return Console(quiet=True, stream=nowhere, errors=nowhere) if quiet else Console()
