"""Rows that were scanned, of whatever files, made into a dataset's index."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.datasets import DatasetIndex, Fractions, check_num_classes, complete_splits, shorten
from sweeper.datasets._label_column import FileRows, number_labels
from sweeper.datasets._listing import given_splits
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint


def index_of_rows(
    files: Sequence[FileRows],
    sources: Sequence[str],
    class_names: tuple[str, ...] | None,
    num_classes: int | None,
    fractions: Fractions,
    seed: int,
    where: str,
) -> DatasetIndex:
    """The index of the rows of some files; a sample's id is its name in `FileRows.ids`, else `file#row`.

    Args:
        sources: of each row, what decoding opens.
        class_names: of the labels 0..K-1, if the user gives them.
        num_classes: how many the user expects.

    Raises:
        InputError: no row, labels or splits that do not fit, a class with too few images.
    """
    sample_ids = [sample_id for file in files for sample_id in file.sample_ids()]
    if not sample_ids:
        raise InputError(f"{where}: no row in {shorten([file.name for file in files])}")
    names, labels = number_labels(files, sample_ids, class_names, where)
    check_num_classes(names, num_classes, where)
    splits = complete_splits(given_splits(files, where), labels, fractions, seed, names, where)
    digests = [digest for file in files for digest in file.digests]
    samples = list(zip(sample_ids, digests, labels.tolist(), splits, strict=True))
    content = fingerprint({"class_names": names, "samples": samples})
    return DatasetIndex(names, sample_ids, labels, splits, list(sources), content)
