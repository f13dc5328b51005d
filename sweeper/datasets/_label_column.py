"""Turns the labels of shards, numbers or names, into class names and numbers 0..K-1 without gaps."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sweeper.datasets import shorten
from sweeper.errors import InputError


@dataclass(frozen=True)
class FileRows:
    """What one file holds; `name` is its path relative to the dataset's, `source` what its place opens."""

    name: str
    source: str
    labels: pa.Array  # int64 or string
    splits: list[str] | None
    digests: list[str]
    class_names: tuple[str, ...] | None
    ids: tuple[str, ...] | None = None  # of the rows within the file, where their numbers are not

    def sample_ids(self) -> list[str]:
        """Of the rows, among all files."""
        if self.ids is not None:
            return [f"{self.name}/{name}" for name in self.ids]
        return [f"{self.name}#{row}" for row in range(len(self.labels))]


def distinct(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Class names as they are. Raises ValueError: one is given twice."""
    twice = sorted({name for name in value or () if (value or ()).count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice; every class needs a name of its own")
    return value


def hub_class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel as the `datasets` library stores them in the schema; None where there are none."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def number_labels(
    files: Sequence[FileRows], sample_ids: Sequence[str], class_names: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Class names, and each row's label as their index."""
    filled = [file for file in files if len(file.labels)]
    if len({str(file.labels.type) for file in filled}) > 1:
        kinds = [f"{file.name} has {file.labels.type}" for file in filled]
        raise InputError(f"{where}: the labels are not of one type: {shorten(kinds)}; use one for all files")
    hub = {file.class_names for file in filled}
    if class_names is None and len(hub) > 1:
        raise InputError(f"{where}: the files name their classes differently; set `dataset.class_names`")
    if pa.types.is_integer(filled[0].labels.type):
        values = np.concatenate([file.labels.to_numpy(zero_copy_only=False) for file in filled])
        return _number_integers(values, class_names, next(iter(hub)), sample_ids, where)
    texts = [text for file in filled for text in file.labels.to_pylist()]
    names = class_names or tuple(sorted(set(texts)))
    number = {name: position for position, name in enumerate(names)}
    for sample_id, text in zip(sample_ids, texts, strict=True):
        if text not in number:
            near = difflib.get_close_matches(text, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}: label {text!r} in {sample_id} is not in `dataset.class_names`{hint}")
    return names, np.asarray([number[text] for text in texts], dtype=np.int64)


def _number_integers(
    labels: npt.NDArray[np.int64],
    given: tuple[str, ...] | None,
    hub: tuple[str, ...] | None,
    sample_ids: Sequence[str],
    where: str,
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The labels that occur, in their order, become 0..K-1; each of the `given` names has to occur."""
    low, high = int(labels.min()), int(labels.max())
    names = given or hub
    if low < 0:
        row = sample_ids[int(labels.argmin())]
        raise InputError(
            f"{where}: label {low} in {row}; labels start at 0 (a negative one often means unlabelled: drop it, or "
            "leave its split out)"
        )
    if names is not None and high >= len(names):
        row = sample_ids[int(labels.argmax())]
        raise InputError(
            f"{where}: label {high} in {row}, but there are {len(names)} class names (0 to {len(names) - 1})"
        )
    present, positions = np.unique(labels, return_inverse=True)
    if given is not None and len(present) < len(given):
        absent = [f"{n} ({given[n]})" for n in np.setdiff1d(np.arange(len(given)), present).tolist()]
        raise InputError(
            f"{where}: no row has the label {shorten(absent)}; leave these names out of `dataset.class_names` and "
            "number the others without gaps, or store the class names as strings"
        )
    kept = tuple(str(n) if names is None else names[n] for n in present.tolist())
    return kept, positions.astype(np.int64)
