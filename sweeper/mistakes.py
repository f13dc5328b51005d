"""What a student takes for what: the confusion matrix, the classes that it knows worst, the pairs that it mixes up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sweeper.tables import Record, TextTable, plain

MAX_CLASSES = 20  # of a matrix; of more classes those that most goes wrong with are shown
MAX_WORST = 12
MAX_PAIRS = 12


@dataclass(frozen=True)
class Matrix:
    """Rows are what images show, columns what they were taken for; `others` counts the columns that are left out.

    Attributes:
        cells: for each class its name, a count and its share of the row for each column, and the count of the others.
    """

    names: tuple[str, ...]
    cells: tuple[tuple[str, tuple[tuple[int, float], ...], int], ...]
    num_classes: int


def chosen(records: Sequence[Record]) -> list[Record]:
    """Records of confusion.parquet of the table's first row, which is the most accurate on validation."""
    first = min((record["rank"] for record in records), default=None)
    return [record for record in records if record["rank"] == first]


def matrix(records: Sequence[Record]) -> Matrix:
    """The matrix of one student, by class name; of many classes the `MAX_CLASSES` that most goes wrong with."""
    counts = _counts(records)
    sizes = _sizes(counts)
    wrong = {name: sizes[name] - counts[name, name] for name in sizes}
    names = list(dict.fromkeys([*sizes, *(taken for _, taken in counts)]))
    kept = sorted(names, key=lambda name: -wrong.get(name, 0))[:MAX_CLASSES]
    shown = [name for name in names if name in kept]
    cells = []
    for truth in shown:
        row = [counts[truth, taken] for taken in shown]
        total = sizes.get(truth, 0)
        cells.append((plain(truth), tuple((n, n / total if total else 0.0) for n in row), total - sum(row)))
    return Matrix(tuple(map(plain, shown)), tuple(cells), len(names))


def worst_classes(records: Sequence[Record]) -> TextTable:
    """The classes of which the smallest share was recognised, and what they are most often taken for."""
    counts = _counts(records)
    sizes = _sizes(counts)
    recall = {name: counts[name, name] / size for name, size in sizes.items()}
    rows = []
    for name in sorted(recall, key=lambda name: (recall[name], name))[:MAX_WORST]:
        taken = [(count, other) for (truth, other), count in counts.items() if truth == name and other != name]
        most, other = max(taken, default=(0, ""))
        said = f"{plain(other)} ({most})" if most else "-"
        rows.append((plain(name), f"{100 * recall[name]:.1f}%", str(sizes[name]), said))
    headers = ("class", "recognised", "images", "most often taken for")
    caption = "" if len(recall) <= MAX_WORST else f"The worst {MAX_WORST} of {len(recall)} classes."
    return TextTable(headers, tuple(rows), frozenset(headers[1:3]), caption)


def worst_pairs(records: Sequence[Record]) -> TextTable:
    """The mistakes that are made most often."""
    wrong = [(count, truth, taken) for (truth, taken), count in _counts(records).items() if truth != taken]
    rows = [(plain(t), plain(o), str(n)) for n, t, o in sorted(wrong, key=lambda w: (-w[0], w[1], w[2]))[:MAX_PAIRS]]
    return TextTable(("class", "taken for", "images"), tuple(rows), frozenset({"images"}))


def _counts(records: Sequence[Record]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for record in records:
        found[record["truth"], record["taken_for"]] += int(record["images"])
    return found


def _sizes(counts: Counter[tuple[str, str]]) -> Counter[str]:
    """Images of each class, in the order in which classes appear."""
    found: Counter[str] = Counter()
    for (truth, _), count in counts.items():
        found[truth] += count
    return found
