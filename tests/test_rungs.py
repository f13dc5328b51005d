"""Rankings against brute force, decisions against their definition, and journals that were cut anywhere."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sweeper import pareto
from sweeper.errors import RunFailed
from sweeper.rank_agreement import Agreement, rank_agreement
from sweeper.rungs import Rungs, Spread, is_among_first, order

SPREADS: tuple[Spread, ...] = ("epsilon_net", "crowding")
Points = NDArray[np.float64]


def brute_order(points: Points, maximise: list[bool], spread: Spread, preferred: int, names: list[str]) -> list[int]:
    """`order` from its definition: Python floats, loops over pairs, nothing shared with it."""
    costs = [[-v if up else v for v, up in zip(row, maximise, strict=True)] for row in points.tolist()]
    rest = {row for row, cost in enumerate(costs) if all(map(math.isfinite, cost))}
    last = sorted(set(range(len(costs))) - rest, key=lambda row: names[row])
    columns = list(zip(*(costs[row] for row in rest), strict=True))
    low = [min(column) for column in columns]
    width = [(max(column) - min(column)) or 1.0 for column in columns]
    unit = {row: [(v - a) / w for v, a, w in zip(costs[row], low, width, strict=True)] for row in rest}

    def dominates(one: int, other: int) -> bool:
        return costs[one] != costs[other] and all(a <= b for a, b in zip(costs[one], costs[other], strict=True))

    found: list[int] = []
    while rest:
        front = sorted(
            (row for row in rest if not any(dominates(other, row) for other in rest)),
            key=lambda row: (costs[row][preferred], names[row]),
        )
        found += (brute_net if spread == "epsilon_net" else brute_crowding)([unit[row] for row in front], front)
        rest -= set(front)
    return found + last


def brute_net(points: list[list[float]], rows: list[int]) -> list[int]:
    chosen = [0]
    while len(chosen) < len(rows):
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(math.dist(points[i], points[j]) for j in chosen), -i)))
    return [rows[i] for i in chosen]


def brute_crowding(points: list[list[float]], rows: list[int]) -> list[int]:
    firsts = [i for i, point in enumerate(points) if point not in points[:i]]
    distance = dict.fromkeys(firsts, 0.0)
    for objective in range(len(points[0])):
        line = sorted(firsts, key=lambda i: (points[i][objective], i))
        distance[line[0]] = distance[line[-1]] = math.inf
        for before, i, after in zip(line, line[1:], line[2:], strict=False):
            distance[i] += points[after][objective] - points[before][objective]
    by = sorted(firsts, key=lambda i: (-distance[i], i))
    return [rows[i] for i in [*by, *(i for i in range(len(rows)) if i not in firsts)]]


def some_rows(seed: int) -> tuple[Points, list[bool], list[str], int]:
    """Random rows of one to three objectives, many on one front; copies, NaN and infinities among them."""
    draw = np.random.default_rng(seed)
    num_rows, num_objectives = int(draw.integers(1, 40)), int(draw.integers(1, 4))
    points = draw.normal(size=(num_rows, num_objectives))
    if num_objectives > 1 and seed % 2:
        points[:, 0] = -points[:, 1:].sum(axis=1) + 0.2 * points[:, 0]
    points = points[draw.integers(0, num_rows, size=num_rows)]
    points[draw.random(points.shape) < 0.05] = draw.choice([np.nan, np.inf, -np.inf])
    maximise = [False] * num_objectives if seed % 2 else [bool(up) for up in draw.integers(0, 2, size=num_objectives)]
    names = [f"trial-{i:05d}" for i in draw.permutation(num_rows)]
    return points, maximise, names, int(draw.integers(num_objectives))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seed", range(60))
def test_the_order_is_the_definition_s(seed: int, spread: Spread) -> None:
    points, maximise, names, preferred = some_rows(seed)
    found = order(points, maximise, spread=spread, preferred=preferred, names=names)
    assert found.tolist() == brute_order(points, maximise, spread, preferred, names)


def test_a_long_chain_is_netted_as_defined() -> None:
    """Fronts of two objectives have a short cut; three with one constant do not, and must agree."""
    cost = np.random.default_rng(0).lognormal(size=300)
    pair = np.stack([cost, cost], axis=1)
    triple = np.column_stack([pair, np.zeros(300)])
    found = order(pair, [True, False]).tolist()
    assert found == order(triple, [True, False, False]).tolist()
    assert found[:2] == [int(cost.argmax()), int(cost.argmin())]
    assert sorted(found) == list(range(300))


def test_hand_worked() -> None:
    """On the front 0, 4, 5, 10 (of 10) the net takes the ends, then 5 (distance 5), then 4; crowding prefers 5 too."""
    front = [[x, x] for x in (4.0, 10.0, 0.0, 5.0)]
    behind = [[3.0, 9.0], [math.nan, 0.0], [2.0, 9.5]]
    assert order([*front, *behind], [True, False]).tolist() == [1, 2, 3, 0, 4, 6, 5]
    assert order([*front, *behind], [True, False], preferred=1).tolist() == [2, 1, 3, 0, 4, 6, 5]
    assert order([*front, *behind], [True, False], spread="crowding").tolist() == [1, 2, 3, 0, 4, 6, 5]
    uneven = [[0.0, 0.0], [1.0, 1.0], [6.0, 6.0], [7.0, 7.0], [10.0, 10.0]]  # gaps of neighbours: 6, 6, 4
    assert order(uneven, [True, False], spread="crowding").tolist() == [4, 0, 2, 1, 3]
    assert order(uneven, [True, False], spread="epsilon_net").tolist() == [
        4,
        0,
        2,
        3,
        1,
    ]  # 6 is 4 from 10, 1 is 1 from 0


def test_no_rows_and_only_bad_rows() -> None:
    assert order(np.empty((0, 2)), False).tolist() == []
    assert order([[math.nan, 0.0], [None, 1.0], [math.inf, 1.0]], False, names=["c", "a", "b"]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_rows_does_not_matter(seed: int, spread: Spread) -> None:
    points, maximise, names, preferred = some_rows(seed)
    found = [names[i] for i in order(points, maximise, spread=spread, preferred=preferred, names=names)]
    mixed = np.random.default_rng(seed).permutation(len(points))
    other = [names[i] for i in mixed]
    again = order(points[mixed], maximise, spread=spread, preferred=preferred, names=other)
    assert [other[i] for i in again] == found


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seed", range(30))
def test_the_first_are_those_of_the_order(seed: int, spread: Spread) -> None:
    points, _, names, preferred = some_rows(seed)
    points[~np.isfinite(points).all(axis=1)] = np.nan
    found = order(points, False, spread=spread, preferred=preferred, names=names).tolist()
    good = int(np.isfinite(points).all(axis=1).sum())
    for count, row in itertools.product(range(len(points) + 1), range(len(points))):
        expected = row in found[: min(count, good)]
        assert is_among_first(count, row, points, names, spread, preferred) == expected


def fresh(levels: list[float] | None = None, **options: Any) -> Rungs:
    return Rungs(levels or [2, 6], 3.0, [True, False], **options)


def test_small_rungs() -> None:
    """One objective, worse and worse newcomers, then a best: floor(n / 3) + 1 places."""
    rungs = Rungs([1], 3.0, [True])
    assert [rungs.report(str(i), 1, [1.0 - i / 10]) for i in range(3)] == [True, False, False]
    assert rungs.report("better", 1, [2.0])
    assert [Rungs([1], 3.0, [True]).report("alone", 1, [v]) for v in (0.0, math.nan, math.inf)] == [True, False, False]
    second_of_three = Rungs([1], 3.0, [True])
    assert [second_of_three.report(name, 1, [v]) for name, v in (("a", 3.0), ("b", 1.0), ("c", 2.0))] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_every_decision_is_the_definition_s(spread: Spread, reduction: float) -> None:
    """Position in the brute order over n, for newcomers with copies and bad values among them."""
    draw = np.random.default_rng(int(reduction))
    rungs = Rungs([1], reduction, [True, False], spread=spread)
    rows: list[list[float]] = []
    names: list[str] = []
    answers = set()
    for i in range(60):
        row = list(rows[int(draw.integers(len(rows)))]) if i and draw.random() < 0.2 else draw.normal(size=2).tolist()
        row = [math.nan, row[1]] if draw.random() < 0.1 else row
        rows.append(row)
        names.append(f"trial-{i:05d}")
        position = brute_order(np.array(rows), [True, False], spread, 0, names).index(i)
        expected = math.isfinite(row[0]) and position / len(rows) <= 1 / reduction
        assert rungs.report(names[-1], 1, row) == expected
        answers.add(expected)
    assert answers == {True, False}


@pytest.mark.parametrize("spread", SPREADS)
def test_a_decision_does_not_depend_on_the_order_of_earlier_records(spread: Spread) -> None:
    draw = np.random.default_rng(0)
    answers = []
    for _ in range(60):
        earlier = draw.normal(size=(12, 2))
        earlier[:, 0] = np.where(draw.random() < 0.5, earlier[:, 1], earlier[:, 0])
        newcomer = earlier[0] if draw.random() < 0.3 else draw.normal(size=2)
        found = set()
        for _ in range(4):
            rungs = fresh([1], spread=spread)
            for i in draw.permutation(12):
                rungs.report(f"trial-{i:05d}", 1, earlier[i])
            found.add(rungs.report("trial-00005x", 1, newcomer))
        assert len(found) == 1
        answers += found
    assert set(answers) == {True, False}


@pytest.mark.parametrize("spread", SPREADS)
def test_a_dominated_newcomer_is_stopped_while_enough_are_better(spread: Spread) -> None:
    """Whoever is dominated by more than n / eta records is out; whoever nothing dominates is not out for that."""
    draw = np.random.default_rng(1)
    rungs = fresh([1], spread=spread)
    seen: list[Points] = []
    stopped = 0
    for i in range(400):
        row = draw.normal(size=2)
        dominating = sum(bool(other[0] > row[0] and other[1] < row[1]) for other in seen)
        seen.append(row)
        goes_on = rungs.report(f"trial-{i:05d}", 1, row)
        if dominating > len(seen) / 3:
            stopped += 1
            assert not goes_on
        front = pareto.front(np.array(seen), [True, False])
        if front[-1] and front.sum() <= len(seen) / 3:
            assert goes_on
    assert stopped > 50  # of 400


def test_identical_vectors_go_by_name() -> None:
    rungs = fresh([1])
    assert [rungs.report(name, 1, [0.5, 1.0]) for name in ("d", "c", "e", "b", "a")] == [True, True, False, True, True]


def test_bad_values_never_go_on_and_never_push_others_out() -> None:
    rungs = fresh([1])
    bad = [(math.nan, 1.0), (0.9, math.inf), (None, 1.0), (math.inf, 1.0), (0.9, -math.inf), (0.9, None)]
    assert not any(rungs.report(f"bad-{i}", 1, values) for i, values in enumerate(bad))
    assert [rungs.report(f"good-{i}", 1, [0.1, 1.0 + i]) for i in range(3)] == [True, True, True]
    with pytest.raises(ValueError, match="must be 2"):
        rungs.report("short", 1, [0.5])


def test_the_first_report_at_or_beyond_a_level_counts() -> None:
    rungs = fresh([2, 6])
    assert rungs.report("a", 1, [0.1, 1.0])
    assert rungs.records(2) == []
    assert rungs.report("a", 3, [0.2, 1.0])
    assert rungs.report("b", 7, [0.9, 0.5])
    rungs.report("a", 5, [0.99, 0.1])
    assert [(r.trial, r.values) for r in rungs.records(2)] == [("a", (0.2, 1.0)), ("b", (0.9, 0.5))]
    assert [r.trial for r in rungs.records(6)] == ["b"]
    assert not rungs.report("c", 2, [0.1, 2.0])
    assert not rungs.report("c", 6, [1.0, 0.1])  # best at 6, but it was to stop at 2
    assert rungs.records(6)[-1].goes_on
    assert not rungs.report("c", 1000, [1.0, 0.1])
    assert rungs.report("c", 1, [1.0, 0.1])
    assert [len(rungs.records(level)) for level in rungs.levels] == [3, 2]


@pytest.mark.parametrize(("levels", "reduction"), [([3, 2], 3.0), ([2, 2], 3.0), ([0, 2], 3.0), ([1], 1.0)])
def test_levels_and_reduction_make_sense(levels: list[float], reduction: float) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        Rungs(levels, reduction, [True])


STREAM = [
    (f"trial-{i:05d}", at, [float(v), None if i == 3 else float(w)])
    for at in (2, 6)
    for i, (v, w) in enumerate(np.random.default_rng(at).normal(size=(5, 2)))
]


def tables(rungs: Rungs) -> dict[float, list[tuple[str, str, bool]]]:
    return {level: [(r.trial, repr(r.values), r.goes_on) for r in rungs.records(level)] for level in rungs.levels}


def test_a_journal_cut_at_any_byte_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within any write, the reports that were not written down come again; answers and tables are the same."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of them; their place is tested below
    journal = tmp_path / "rungs.jsonl"
    whole = fresh(journal=journal)
    answers = [whole.report(*event) for event in STREAM]
    expected, data = tables(whole), journal.read_bytes()
    assert set(answers) == {True, False}
    assert tables(fresh(journal=journal)) == expected
    for size in range(len(data) + 1):
        journal.write_bytes(data[:size])
        resumed = fresh(journal=journal)
        assert journal.read_bytes() == data[: data.rfind(b"\n", 0, size) + 1]
        assert [resumed.report(*event) for event in STREAM] == answers
        assert tables(resumed) == expected
        assert journal.read_bytes() == data


def test_a_record_is_on_disk_before_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "new" / "rungs.jsonl"
    rungs = fresh(journal=journal)
    assert rungs.report("a", 2, [0.5, 1.0])
    assert json.loads(journal.read_text()) == {"rung": 2, "trial": "a", "values": [0.5, 1.0], "goes_on": True}

    def no_disk(descriptor: int) -> None:
        raise OSError("no disk")

    monkeypatch.setattr("os.fsync", no_disk)
    with pytest.raises(OSError, match="no disk"):
        rungs.report("b", 2, [0.9, 1.0])
    assert [r.trial for r in rungs.records(2)] == ["a"]


def test_duplicates_count_once_and_strangers_not_at_all(tmp_path: Path) -> None:
    journal = tmp_path / "rungs.jsonl"
    rungs = fresh(journal=journal)
    for event in STREAM:
        rungs.report(*event)
    expected, data = tables(rungs), journal.read_bytes()
    changed = data.replace(b'"goes_on": true', b'"goes_on": false')
    journal.write_bytes(data + changed)
    assert tables(fresh(journal=journal)) == expected
    for line, problem in ((b"garbage\n", "damaged"), (b"[]\n", "damaged"), (b'{"rung": 2}\n', "not a rung's record")):
        journal.write_bytes(data + line + data)
        with pytest.raises(RunFailed, match=rf"rungs\.jsonl:{len(STREAM) + 1}: {problem}"):
            fresh(journal=journal)
    journal.write_bytes(data)
    with pytest.raises(RunFailed, match="is not of this search"):
        fresh([2, 7], journal=journal)
    with pytest.raises(RunFailed, match="is not of this search"):
        Rungs([2, 6], 3.0, [True], journal=journal)


def search(rule: str, seed: int, budget: int = 600) -> float:
    """Hypervolume after so many epochs, on trials whose final accuracy shows early, with noise, and costs something."""
    draw = np.random.default_rng(seed)
    rungs = None if rule == "random" else Rungs([1, 3, 9], 3.0, [True, False], spread=rule)  # type: ignore[arg-type]
    done: list[tuple[float, float]] = []
    for i in itertools.count():
        x = draw.random(4)
        log_cost = 2 * x[0]
        accuracy = 0.5 + 0.3 * x[0] - 0.4 * float(np.square(x[1:] - 0.3).sum())
        for at in (1, 3, 9, 27):
            budget -= {1: 1, 3: 2, 9: 6, 27: 18}[at]
            if budget < 0:
                return pareto.hypervolume(done, [0.0, 3.0], [True, False])
            if at == 27:
                done.append((accuracy, log_cost))
                break
            noisy = accuracy + draw.normal() * 0.05 / at
            goes_on = rungs.report(f"trial-{i:05d}", at, [noisy, log_cost]) if rungs else draw.random() < 1 / 3
            if not goes_on:
                break
    raise AssertionError


@pytest.mark.parametrize("spread", SPREADS)
def test_ranking_beats_chance(spread: Spread) -> None:
    """What a permutation read for its inverse would lose: it decides no better than chance."""
    gains = [search(spread, seed) - search("random", seed) for seed in range(20)]
    assert stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 1e-4


def test_rank_agreement_is_spearman_s() -> None:
    draw = np.random.default_rng(0)
    curves = {str(i): [[e, float(draw.random()), 0.0, e / 2] for e in range(1, 10)] for i in range(8)}
    curves["short"] = [[1, 0.5, 0.0, 0.5], [2, 0.7, 0.0, 1.0]]
    curves["nan"] = [[e, math.nan if e > 1 else 0.5, 0.0, e / 2] for e in range(1, 10)]
    curves["none"] = []
    final = [curves[str(i)][-1][1] for i in range(8)]

    def by_hand(epoch: int) -> float:
        return float(stats.spearmanr([curves[str(i)][epoch - 1][1] for i in range(8)], final).statistic)

    found = rank_agreement(curves, [2, 3.5, 9])
    assert found[2] == Agreement(pytest.approx(by_hand(2)), 8)
    assert found[3.5] == Agreement(pytest.approx(by_hand(4)), 8)
    assert found[9] == Agreement(None, 0)
    assert rank_agreement(curves, [1.0], column=3) == {1.0: found[2]}


def test_rank_agreement_needs_three_that_differ() -> None:
    curves = {name: [[1, a, 0.0, 1.0], [2, b, 0.0, 2.0]] for name, a, b in [("a", 0.1, 0.2), ("b", 0.2, 0.4)]}
    assert rank_agreement(curves, [1]) == {1: Agreement(None, 2)}
    curves["c"] = [[1, 0.05, 0.0, 1.0], [2, 0.9, 0.0, 2.0]]
    assert rank_agreement(curves, [1]) == {1: Agreement(pytest.approx(-0.5), 3)}
    curves = {name: [[1, 0.3, 0.0, 1.0], curve[1]] for name, curve in curves.items()}
    assert rank_agreement(curves, [1]) == {1: Agreement(None, 3)}
