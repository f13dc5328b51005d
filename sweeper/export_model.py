"""A row of a run's Pareto table as a folder for others: timm's format, ONNX, the classes' names and a model card.

The folder is complete when it appears under its name. It replaces an earlier export as a whole; what is somebody
else's is left alone unless the user insists.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sweeper import arrow, model_card, provenance, tables
from sweeper.architecture import CONFIG_FILE, WEIGHTS_FILE
from sweeper.datasets import given_path
from sweeper.errors import InputError
from sweeper.files import write_atomically, write_folder
from sweeper.record import stays_below
from sweeper.results import RunFolder
from sweeper.rows import Record
from sweeper.store import Store
from sweeper.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from sweeper.onnx_export import Check

ONNX_FILE, LABELS_FILE, CARD_FILE = "model.onnx", "labels.txt", "README.md"
FILES = (CONFIG_FILE, WEIGHTS_FILE, ONNX_FILE, LABELS_FILE, CARD_FILE)
NUM_REAL = 50  # images of the dataset on which the ONNX graph is compared with the student


@dataclass(frozen=True)
class Exported:
    """What was written, and how the ONNX graph compares with the student; None without one."""

    row: Record
    paths: tuple[Path, ...]
    check: Check | None

    def lines(self) -> list[str]:
        """What a user should know of it."""
        row, score = self.row, tables.accuracy_text(self.row["accuracy_test"], self.row["accuracy_test_std"])
        seeds = f"mean of {row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
        size = f"{tables.params_text(row['params'])} parameters"
        made = f"row {row['rank']}: {row['student']}, {size}, test {score} ({seeds})"
        checked = [f"ONNX Runtime against torch: {self.check}"] if self.check else []
        return [made, *checked, f"`sweeper predict {shlex.quote(str(self.paths[0].parent))} IMAGES...` uses it"]


def export_model(
    run: RunFolder, rank: int, to: str | os.PathLike[str], store: Store, *, force: bool = False, with_onnx: bool = True
) -> Exported:
    """Write the student of a row.

    Args:
        rank: the row's, from the first column of the table.
        to: the folder; it may be an earlier export.
        store: where images of the dataset are looked for, to try the ONNX graph on.
        force: write into a folder of other files, which stay; those of the export's names are replaced.

    Raises:
        InputError: no such row, a folder that is somebody else's, or a student that was damaged.
        RunFailed: the student can not be written as ONNX.
    """
    row, source = find_row(run, rank)
    folder = given_path(str(to), f"--to: {one_line(str(to))}")
    keeps_others = _check_folder(folder, force)

    from sweeper import onnx_export, predict

    classifier = predict.load(source)
    check, graph = None, b""
    if with_onnx:
        graph = onnx_export.to_onnx(classifier.student)
        real = dataset_images(store, classifier.class_names, classifier.student.image_size)
        check = onnx_export.check(graph, classifier.student, real)
    config = (source / CONFIG_FILE).read_bytes()
    card = model_card.render(run, row, json.loads(config), check, provenance.command_line(sys.argv))
    # a name over two lines would move all that follow
    labels = "".join(one_line(name, len(name) * 10) + "\n" for name in classifier.class_names)
    contents = (config, (source / WEIGHTS_FILE).read_bytes(), graph, labels.encode(), card.encode("utf-8", "replace"))
    files = {name: data for name, data in zip(FILES, contents, strict=True) if data}
    if keeps_others:
        for name, data in files.items():
            write_atomically(folder / name, data)
        if not with_onnx:
            (folder / ONNX_FILE).unlink(missing_ok=True)
    else:
        write_folder(folder.resolve(), files)
    return Exported(row, tuple(folder / name for name in files), check)


def find_row(run: RunFolder, rank: int) -> tuple[Record, Path]:
    """A row of the table, and the folder of its student.

    Raises:
        InputError: the table has no such row, or the student is gone.
    """
    rows = {row["rank"]: row for row in run.read_pareto()}
    if not rows:
        raise InputError(f"run: {run.label} has no table yet; `sweeper run {run.path / 'space.yaml'}` goes on with it")
    if rank not in rows:
        allowed = f"1 to {max(rows)}" if len(rows) > 1 else str(max(rows))
        raise InputError(
            f"--model: {rank} is not a row of {run.label}; allowed: {allowed}, the first column of its table "
            f"(`sweeper show {run.label}`)"
        )
    name = rows[rank].get("model") or str(rows[rank]["trial"])
    folder = run.path / "models" / name
    if not stays_below(name) or "/" in name or not folder.is_dir():
        raise InputError(
            f"--model: the student of row {rank} of {run.label} is not there ({one_line(str(folder))}): moved, "
            f"or not copied with the run; `sweeper run {run.path / 'space.yaml'} --results ELSEWHERE` trains it again"
        )
    return rows[rank], folder


def _check_folder(folder: Path, force: bool) -> bool:
    """Whether the folder holds other files, among which the export is to be written.

    Raises:
        InputError: it does and nobody insists, or it is a file.
    """
    shown = one_line(str(folder))
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"--to: {shown} is a link to nowhere; give a folder that is new, empty or an earlier export")
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise InputError(f"--to: {shown} is a file; give a folder that is new, empty or an earlier export")
    found = sorted(os.listdir(folder))
    others = [name for name in found if name not in FILES]
    if not others and (not found or _is_export(folder)):
        return False
    if not force:
        example = one_line((others or found)[0], 100)
        raise InputError(
            f"--to: {shown} is not empty and no earlier export ({example} is there); give another folder, or --force "
            f"to replace {', '.join(FILES)} in it and keep the rest"
        )
    return True


def _is_export(folder: Path) -> bool:
    try:
        with (folder / CARD_FILE).open("rb") as card:
            return card.read(len(model_card.HEAD)) == model_card.HEAD.encode()
    except OSError:
        return False


def dataset_images(store: Store, class_names: tuple[str, ...], image_size: int) -> list[Tensor]:
    """At most `NUM_REAL` images of these classes from the store, each float [3, H, W] in [0, 1]; none if it has none.

    They are of validation where its first file has such; a large dataset's other files are not read. A student of a
    smaller resolution of its own is shown them as it was trained on them.
    """
    from sweeper import views
    from sweeper.batches import image_split

    found = [one for one in store.find("images", class_names=list(class_names)) if one.spec["image_size"] >= image_size]
    for record in sorted(found, key=lambda record: int(record.spec["image_size"])):
        names = sorted(entry.name for entry in record.files if entry.name.endswith(".parquet"))
        if names:
            table = arrow.plain(pq.read_table(io.BytesIO(store.read_bytes(record, names[0]))))
            of_val = table.filter(pc.equal(table["split"], "val"))
            chosen = of_val if len(of_val) else table
            chosen = chosen.take(list(range(0, len(chosen), max(1, len(chosen) // NUM_REAL)))[:NUM_REAL])
            return list(views.whole(image_split(chosen, record.spec["image_size"]).images_BCHW, image_size))
    return []
