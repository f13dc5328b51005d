"""Rungs of successive halving in several objectives: who stands where among all that came as far, and who goes on.

The stopping form of ASHA (Li et al. 2020, arXiv 1810.05934) with the ranking of multi-objective ASHA (Schmucker et al.
2021, arXiv 2106.12639): non-dominated sorting, and within a front a spread over it.

Objectives are brought to [0, 1] by the least and the greatest value on record before distances are taken. Ranks instead
would stretch whatever region a sampler has visited most, so that the spread would go where the records already are. A
heavy-tailed objective (cost) has to come in logs, since one costly trial would flatten it otherwise: the caller's part.
"""

from __future__ import annotations

import bisect
import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeper import pareto
from sweeper.errors import RunFailed
from sweeper.journals import mend

Spread = Literal["epsilon_net", "crowding"]
Floats = NDArray[np.float64]


def order(
    points: ArrayLike,
    maximise: pareto.Maximise,
    *,
    spread: Spread = "epsilon_net",
    preferred: int = 0,
    names: Sequence[Any] | None = None,
) -> NDArray[np.int64]:
    """Row numbers, best first: front by front, each by its spread; the order of the rows does not matter.

    Args:
        points: [N, M] values; a row with NaN, None or an infinity comes after all others.
        maximise: for all objectives, or one of M: True where more is better.
        spread: "epsilon_net" begins at the best of the preferred objective and goes on with the member farthest (L2)
            from all before it; "crowding" is NSGA-II's distance, descending, the ends of the front first.
        preferred: objective that settles where a front begins, and ties.
        names: of the rows, for ties between equal ones; their numbers if left out.

    Raises:
        ValueError: as `pareto.ranks`.
    """
    costs = _costs(points, maximise)
    names = range(len(costs)) if names is None else names
    finite = np.isfinite(costs).all(axis=1)
    ranks, scaled = pareto.ranks(costs, False), _scaled(costs)
    found: list[int] = []
    for rank in np.unique(ranks[finite]):
        members = _settled(np.flatnonzero(ranks == rank), costs[:, preferred], names)
        found.extend(members[i] for i in _SPREADS[spread](scaled[members]))
    found.extend(sorted(np.flatnonzero(~finite).tolist(), key=lambda row: names[row]))
    return np.array(found, dtype=np.int64)


def is_among_first(
    count: int, row: int, costs: Floats, names: Sequence[Any], spread: Spread = "epsilon_net", preferred: int = 0
) -> bool:
    """Whether `order` has `row` among its first `count`, finding out no more than that takes.

    A row that `count` others dominate is out in O(N M). Otherwise the fronts are found, O(N log N) for two objectives,
    and the row's own, of K members, is spread only where the cut falls inside it: O(K log K) for crowding, at most
    O(K count) for the net. In `costs` [N, M] less is better, and a row that is not finite is NaN throughout.
    """
    own = costs[row]
    if np.isnan(own).any() or np.count_nonzero((costs <= own).all(axis=1) & (costs < own).any(axis=1)) >= count:
        return False
    ranks = pareto.ranks(costs, False)
    left = count - int(np.count_nonzero(ranks < ranks[row]))
    front = np.flatnonzero(ranks == ranks[row])
    if left <= 0 or left >= len(front):
        return left > 0
    members = _settled(front, costs[:, preferred], names)
    place = members.index(row)
    return place in islice(_SPREADS[spread](_scaled(costs)[members]), left)


class Record(NamedTuple):
    """What a trial had at a rung, in the objectives' own directions (NaN for what was not finite), and the answer."""

    trial: str
    values: tuple[float, ...]
    goes_on: bool


class Rungs:
    """The tables of a search's rungs, kept in a journal so that a resumed run decides as the first one would have.

    A trial goes on at a rung iff its 0-based position among the n records, its own included, is at most n / reduction.
    So a lone record goes on; of two, with reduction 3, the better; a third goes on if it is among the best two of three
    (1/3 is not above 1/3); in general floor(n / reduction) + 1 places, one more than a promotion by batches would give,
    which counts while n is small and vanishes as 1/n. Values that are not finite never go on, not even alone.

    Args:
        levels: ascending, in epochs or in device-seconds; reduction: eta, above 1; maximise: one of each objective.
        spread, preferred: as of `order`; journal: JSON lines, appended; None: memory alone.

    Raises:
        ValueError: levels do not ascend, or a reduction of 1 or less.
        RunFailed: the journal has a line that is no record of these rungs.
    """

    def __init__(
        self,
        levels: Sequence[float],
        reduction: float,
        maximise: Sequence[bool],
        *,
        spread: Spread = "epsilon_net",
        preferred: int = 0,
        journal: Path | None = None,
    ) -> None:
        if any(low >= high for low, high in zip((0, *levels), levels, strict=False)) or reduction <= 1:
            raise ValueError(f"levels {levels}, reduction {reduction}: levels must ascend from above 0, reduction > 1")
        self.levels, self.reduction, self.maximise = tuple(levels), reduction, tuple(maximise)
        self.spread, self.preferred, self.journal = spread, preferred, journal
        self._tables = {level: _Table(self.maximise) for level in self.levels}
        for record_level, record in _read(journal) if journal else ():
            if record_level not in self._tables or len(record.values) != len(self.maximise):
                raise RunFailed(
                    f"{journal}: rung {record_level} with {len(record.values)} values is not of this search"
                )
            self._tables[record_level].add(record)

    def report(self, trial: str, at: float, values: Sequence[float | None]) -> bool:
        """Enter a trial at every rung that it has passed and was not entered at, and say whether it goes on.

        The first report at or beyond a level counts; later ones change neither the record nor the answer there. A trial
        goes on if it does so at all the rungs that it has passed.

        Args:
            trial: its stable name; at: epochs, or device-seconds, done; values: None where an objective is missing.

        Raises:
            ValueError: not one value of each objective.
        """
        found = tuple(math.nan if v is None or not math.isfinite(v) else float(v) for v in values)
        if len(found) != len(self.maximise):
            raise ValueError(f"values: {values!r}; must be {len(self.maximise)}, one of each objective")
        answers = [self._answer(level, trial, found) for level in self.levels if level <= at]  # enters all of them
        return all(answers)

    def records(self, level: float) -> list[Record]:
        """The rung's records in the order in which they came."""
        return list(self._tables[level].records.values())

    def _answer(self, level: float, trial: str, values: tuple[float, ...]) -> bool:
        table = self._tables[level]
        if trial not in table.records:
            costs, names = table.with_newcomer(values), [*table.records, trial]
            places = math.floor(len(names) / self.reduction) + 1
            goes_on = is_among_first(places, len(names) - 1, costs, names, self.spread, self.preferred)
            record = Record(trial, values, goes_on)
            if self.journal:
                _append(self.journal, level, record)
            table.add(record)
        return table.records[trial].goes_on


class _Table:
    """A rung's records, and their costs in an array with room, so that a newcomer copies none of them."""

    def __init__(self, maximise: Sequence[bool]) -> None:
        self.records: dict[str, Record] = {}
        self._maximise = maximise
        self._room = np.empty((16, len(maximise)))

    def with_newcomer(self, values: Sequence[float]) -> Floats:
        """Costs [n + 1, M] of the records and of one that is not yet among them, the last row."""
        count = len(self.records)
        if count == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[count] = _costs([values], self._maximise)[0]
        return self._room[: count + 1]

    def add(self, record: Record) -> None:
        """Append; a trial's first record stays."""
        if record.trial not in self.records:
            self.with_newcomer(record.values)
            self.records[record.trial] = record


def _costs(points: ArrayLike, maximise: pareto.Maximise) -> Floats:
    """Less is better; NaN throughout in rows that are not finite."""
    costs = np.asarray(points, dtype=float) * np.where(maximise, -1.0, 1.0)
    costs[~np.isfinite(costs).all(axis=1)] = np.nan
    return costs


def _scaled(costs: Floats) -> Floats:
    finite = costs[np.isfinite(costs).all(axis=1)]
    if not len(finite):
        return costs
    width = np.ptp(finite, axis=0)
    return np.asarray((costs - finite.min(axis=0)) / np.where(width > 0, width, 1.0))


def _settled(rows: NDArray[np.intp], preferred: Floats, names: Sequence[Any]) -> list[int]:
    """Rows in an order that only their values and names decide: the first of equals is the same for any row order."""
    return sorted(rows.tolist(), key=lambda row: (preferred[row], names[row]))


def _epsilon_net(points: Floats) -> Iterator[int]:
    """From the first point on, always the one farthest from those before it; copies of a point come last."""
    nearest = np.full(len(points), np.inf)  # squared distance to the chosen ones; -1: chosen
    chosen, taken = 0, [0, len(points) - 1]  # the bounds of the chain, taken or not yet
    while nearest[chosen] > 0:
        yield chosen
        low, high = 0, len(points)
        if points.shape[1] == 2 and 0 < chosen < high - 1:  # a chain: nothing beyond the neighbours comes nearer
            place = bisect.bisect(taken, chosen)
            low, high = taken[place - 1], taken[place] + 1
            taken.insert(place, chosen)
        between = nearest[low:high]
        np.minimum(between, np.square(points[low:high] - points[chosen]).sum(axis=1), out=between)
        nearest[chosen] = -1.0
        chosen = int(nearest.argmax())
    yield from np.flatnonzero(nearest == 0).tolist()


def _crowding(points: Floats) -> Iterator[int]:
    """Deb et al. 2002 (NSGA-II), section III-B, over distinct points; copies of a point come last."""
    firsts = np.sort(np.unique(points, axis=0, return_index=True)[1])
    distances = np.zeros(len(firsts))
    for values in points[firsts].T:
        by_value = np.argsort(values, kind="stable")
        distances[by_value[1:-1]] += values[by_value[2:]] - values[by_value[:-2]]
        distances[by_value[[0, -1]]] = np.inf
    yield from firsts[np.argsort(-distances, kind="stable")].tolist()
    yield from np.setdiff1d(np.arange(len(points)), firsts).tolist()


_SPREADS = {"epsilon_net": _epsilon_net, "crowding": _crowding}


def _append(journal: Path, level: float, record: Record) -> None:
    """On the disk when this returns."""
    values = [None if math.isnan(value) else value for value in record.values]
    line = json.dumps({"rung": level, "trial": record.trial, "values": values, "goes_on": record.goes_on})
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read(journal: Path) -> Iterator[tuple[float, Record]]:
    """The journal's records."""
    mend(journal)
    data = journal.read_bytes() if journal.exists() else b""
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
            values = tuple(math.nan if value is None else float(value) for value in row["values"])
            yield float(row["rung"]), Record(str(row["trial"]), values, bool(row["goes_on"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFailed(f"{journal}:{number}: not a rung's record ({error}); remove the line to go on") from error
