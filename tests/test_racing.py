"""The statistics of the finalists against closed forms, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sweeper.pareto import front, hypervolume
from sweeper.racing import Race, Reached, Run, beaten_by, front_probability, near_ties, p_value, spread, winners_curse


def tail(t: float, df: int) -> float:
    """P(T > t) of Student's distribution, integrated from its density."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    beyond, _ = quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), abs(t), math.inf)
    return beyond if t > 0 else 1 - beyond


def p_by_definition(rival: Sequence[float], own: Sequence[float]) -> float:
    ahead = [a - b for a, b in zip(rival, own, strict=True)]
    mean, n = fmean(ahead), len(ahead)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in ahead) / (n - 1))
    return tail(mean / (deviation / math.sqrt(n)), n - 1)


class TestPValue:
    @pytest.mark.parametrize("num_seeds", [2, 3, 5])
    def test_is_the_tail_of_students_distribution(self, num_seeds: int) -> None:
        draw = np.random.default_rng(num_seeds)
        for _ in range(10):
            rival, own = draw.normal(0.8, 0.02, (2, num_seeds))
            assert p_value(rival, own) == pytest.approx(p_by_definition(rival, own), abs=1e-7)

    def test_without_spread_the_sign_decides(self) -> None:
        own = [0.1, 0.7, 0.9]
        assert p_value([a + 0.1 for a in own], own) == 0.0, "0.8 - 0.7 is not 0.2 - 0.1 to the last digit"
        assert p_value(own, own) == 1.0
        assert p_value([a - 0.1 for a in own], own) == 1.0

    def test_one_image_is_the_least_spread(self) -> None:
        """Accuracies of 200 images: three seeds that are each ahead by one image prove little, by twenty a lot."""
        own = [0.8, 0.81, 0.79]
        assert p_value([a + 1 / 200 for a in own], own, 1 / 200) == pytest.approx(
            stats.t.sf(math.sqrt(3), df=2), rel=1e-6
        )
        assert p_value([a + 20 / 200 for a in own], own, 1 / 200) < 0.001
        wide = [0.6, 0.9, 0.85]
        assert p_value(wide, own, 1 / 200) == p_value(wide, own), "a larger spread stands"

    def test_seeds_are_paired(self) -> None:
        """Seeds that are hard for both hide nothing."""
        own = [0.2, 0.5, 0.9]
        assert p_value([0.22, 0.53, 0.92], own) < 0.01
        assert p_value([0.53, 0.92, 0.22], own) > 0.3


class TestBeatenBy:
    ACCURACIES: Mapping[str, Sequence[float]] = {
        "own": [0.50, 0.52, 0.51],
        "ahead": [0.60, 0.63, 0.60],
        "far ahead": [0.70, 0.72, 0.711],
        "behind": [0.4, 0.41, 0.4],
    }

    def test_only_by_one_that_costs_no_more(self) -> None:
        def found(**costs: float) -> str | None:
            return beaten_by("own", self.ACCURACIES, {n: costs.get(n.replace(" ", "_"), 9.0) for n in costs_of}, 0.05)

        costs_of = self.ACCURACIES
        assert found(own=5.0) is None
        assert found(own=5.0, behind=1.0) is None
        assert found(own=5.0, ahead=5.0) == "ahead"
        assert found(own=5.0, ahead=1.0, far_ahead=2.0) == "far ahead", "the clearest one"
        assert found(own=5.0, ahead=5.0 + 1e-9) is None

    def test_rivals_share_the_level(self) -> None:
        costs = dict.fromkeys(self.ACCURACIES, 1.0)
        p = min(p_by_definition(self.ACCURACIES[n], self.ACCURACIES["own"]) for n in ("ahead", "far ahead", "behind"))
        assert beaten_by("own", self.ACCURACIES, costs, 3 * p * 1.001) == "far ahead"
        assert beaten_by("own", self.ACCURACIES, costs, 3 * p * 0.999) is None
        alone = {**costs, "ahead": 2.0, "behind": 2.0}
        assert beaten_by("own", self.ACCURACIES, alone, p * 1.001) == "far ahead", "one that costs more is no rival"


Table = Mapping[tuple[str, int], Run]
SEEDS = (11, 12, 13, 14, 15)


def table(seed: int, num_racers: int, shift: float) -> Table:
    """Racers with means `shift` apart at most and costs of few values, so that many are equal or change places."""
    draw = np.random.default_rng(seed)
    means, costs = draw.uniform(0, shift, num_racers), draw.integers(1, 4, num_racers)
    return {
        (f"r{i}", s): Run(float(draw.normal(means[i], 0.01)), float(costs[i] + draw.integers(0, 3)))
        for i in range(num_racers)
        for s in SEEDS
    }


def decisions_by_definition(runs: Table, droppable: Mapping[str, bool]) -> dict[str, tuple[str, int]]:
    """Who is beaten by whom after how many seeds, were each round awaited."""
    beaten: dict[str, tuple[str, int]] = {}
    for number in range(2, len(SEEDS)):
        racing = [racer for racer in droppable if racer not in beaten]
        seen = {r: [runs[r, s].accuracy for s in SEEDS[:number]] for r in racing}
        cost = {r: sum(runs[r, s].cost for s in SEEDS[:number]) for r in racing}
        now = {}
        for racer in racing:
            rivals = [o for o in racing if o != racer and cost[o] <= cost[racer]]
            ps = [(p_by_definition(seen[o], seen[racer]), o) for o in rivals]
            if droppable[racer] and ps and min(ps)[0] <= 0.05 / 3 / len(rivals):  # three looks: after 2, 3 and 4 seeds
                now[racer] = (min(ps)[1], number)
        beaten |= now
    return beaten


def run(race: Race, runs: Table, lanes: int, order: random.Random) -> list[tuple[str, int]]:
    """Lanes that end their runs in any order, always one more in the queue; returns what was run."""
    open_runs: list[tuple[str, int]] = []
    started = []
    while True:
        while len(open_runs) <= lanes and (taken := race.take()) is not None:
            open_runs.append(taken)
            started.append(taken)
        if not open_runs:
            return started
        ended = open_runs.pop(order.randrange(len(open_runs)))
        race.record(*ended, runs[ended])


class TestRace:
    DROPPABLE: Mapping[str, bool] = {**{f"r{i}": True for i in range(4)}, "r4": False, "r5": False}

    def test_decides_as_if_each_seed_were_awaited_whatever_ends_first(self) -> None:
        seen = set()
        for seed in range(12):
            runs = table(seed, 6, 0.2)
            expected = decisions_by_definition(runs, self.DROPPABLE)
            for lanes in (1, 3, 40):
                race = Race(self.DROPPABLE, SEEDS)
                started = run(race, runs, lanes, random.Random(lanes))
                assert race.beaten_by == {racer: rival for racer, (rival, _) in expected.items()}
                assert len(started) == len(set(started))
                for racer in self.DROPPABLE:
                    least = expected[racer][1] if racer in expected else len(SEEDS)
                    ran = [s for r, s in started if r == racer]
                    assert ran[:least] == list(SEEDS[:least]), "seeds in order, none left out"
                    assert len(ran) == least or lanes > 1
            seen |= {number for _, number in expected.values()}
        assert seen == {2, 3, 4}, "the samples have to reach every look"

    def test_one_lane_spares_what_is_not_wanted(self) -> None:
        runs = table(10, 6, 0.2)
        race = Race(self.DROPPABLE, SEEDS)
        started = run(race, runs, 1, random.Random(0))
        assert len(race.beaten_by) == 3
        wanted = sum(n for _, n in decisions_by_definition(runs, self.DROPPABLE).values())
        wanted += len(SEEDS) * (6 - len(race.beaten_by))
        assert wanted <= len(started) <= wanted + 2, "a lane's run and the one that waits"

    @pytest.mark.parametrize("sample", [3, 10])
    def test_a_race_goes_on_from_the_runs_that_were_recorded(self, sample: int) -> None:
        """Killed after any number of ends, runs in flight lost; who is beaten stays beaten."""
        runs = table(sample, 6, 0.2)
        whole = Race(self.DROPPABLE, SEEDS)
        run(whole, runs, 3, random.Random(4))
        assert len(whole.beaten_by) == 3
        ends = list(whole.runs.items())
        for survivors in range(len(ends) + 1):
            for kept in (ends[:survivors], ends[:survivors][::-1]):
                again = Race(self.DROPPABLE, SEEDS)
                for (racer, seed), done in kept:
                    again.record(racer, seed, done)
                started = run(again, runs, 3, random.Random(survivors))
                assert again.beaten_by == whole.beaten_by
                assert not set(started) & {place for place, _ in kept}

    def test_undecided_runs_come_last_and_no_lane_idles(self) -> None:
        race = Race({"front": True, "other": True, "arm": False}, SEEDS[:3])
        first = [race.take() for _ in range(9)]
        assert first[:6] == [(r, s) for s in SEEDS[:2] for r in ("front", "other", "arm")]
        assert first[6:] == [("arm", 13), ("front", 13), ("other", 13)], "before the first look has been possible"
        assert race.take() is None

    def test_a_dropped_racer_is_asked_for_nothing_and_beats_nobody(self) -> None:
        race = Race(dict.fromkeys("abc", True), SEEDS[:4])
        accuracies = {"a": [0.5, 0.5, 0.7], "b": [0.9, 0.9, 0.9], "c": [0.95, 0.95, 0.7]}
        costs = {"a": 3.0, "b": 2.0, "c": 1.0}
        for number, racer in itertools.product(range(2), "abc"):
            race.record(racer, SEEDS[number], Run(accuracies[racer][number], costs[racer]))
        assert race.beaten_by == {"a": "c", "b": "c"} or race.beaten_by == {"a": "b", "b": "c"}
        assert [race.take(), race.take(), race.take()] == [("c", 13), ("c", 14), None]
        race.record("b", 13, Run(0.99, 2.0))  # it was in flight
        race.record("c", 13, Run(0.7, 1.0))
        assert set(race.beaten_by) == {"a", "b"}

    @pytest.mark.parametrize("num_seeds", [0, 1, 2])
    def test_too_few_seeds_to_spare_any(self, num_seeds: int) -> None:
        race = Race({"a": True, "b": True}, SEEDS[:num_seeds])
        runs = {(r, s): Run(float(r == "a"), 1.0) for r in "ab" for s in SEEDS}
        assert len(run(race, runs, 1, random.Random(0))) == 2 * num_seeds
        assert race.beaten_by == {}

    def test_an_equal_racer_is_dropped_in_one_race_of_twenty_at_most(self) -> None:
        """Four rivals, three looks: without either correction it would be one of four."""
        draw = np.random.default_rng(0)
        num_races, dropped = 300, 0
        droppable = {"own": True, **{f"r{i}": False for i in range(4)}}
        for _ in range(num_races):
            race = Race(droppable, SEEDS)
            for seed, racer in itertools.product(SEEDS, droppable):
                race.record(racer, seed, Run(float(draw.normal(0.8, 0.01)), 1.0))
            dropped += "own" in race.beaten_by
        assert 0 < dropped <= 0.05 * num_races


class TestSpread:
    @staticmethod
    def some_front(seed: int) -> tuple[list[float], list[float]]:
        """Points of which none beats another, most accurate first, some of them twice."""
        draw = np.random.default_rng(seed)
        accuracies, hours = np.sort(draw.random(9)), np.sort(10 ** draw.uniform(-3, 2, 9))
        twice = [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 8] if seed % 2 else range(9)
        points = sorted(((float(accuracies[i]), float(hours[i])) for i in twice), reverse=True)
        return [p[0] for p in points], [p[1] for p in points]

    @pytest.mark.parametrize("seed", range(8))
    def test_covers_the_most_that_so_many_points_with_the_first_can(self, seed: int) -> None:
        accuracies, costs = self.some_front(seed)
        logs = np.log(costs)
        for count in range(2, 6):
            beyond = np.array([np.ptp(accuracies), np.ptp(logs)]) / (count - 1)
            reference = [min(accuracies) - beyond[0], logs.max() + beyond[1]]

            def area(chosen: Sequence[int], reference: Sequence[float] = reference) -> float:
                return hypervolume([[accuracies[i], logs[i]] for i in chosen], reference, (True, False))

            best = max(area((0, *rest)) for rest in itertools.combinations(range(1, len(costs)), count - 1))
            chosen = spread(accuracies, costs, count)
            assert chosen[0] == 0
            assert chosen == sorted(set(chosen))
            assert len(chosen) == count
            assert area(chosen) == pytest.approx(best, rel=1e-9)
        assert spread(accuracies, costs, 1) == [0]
        assert spread(accuracies, costs, len(costs)) == list(range(len(costs)))

    def test_lies_evenly_on_a_straight_front(self) -> None:
        """In log cost: what doubles the cost is one step, at the cheap end as well."""
        accuracies, costs = [0.9 - 0.05 * i for i in range(13)], [2.0**-i for i in range(13)]
        assert spread(accuracies, costs, 4) == [0, 4, 8, 12]
        assert spread(accuracies, costs, 2) == [0, 12]

    def test_neighbours_do_not_crowd_it(self) -> None:
        crowd = [(0.9 - 1e-4 * i, 10.0 - 0.01 * i) for i in range(30)]
        accuracies, costs = zip(*crowd, (0.7, 1.0), (0.5, 0.1), strict=True)
        assert spread(accuracies, costs, 3) == [0, 30, 31]

    def test_of_equal_points_or_free_ones_has_as_many(self) -> None:
        assert len(spread([0.5] * 4, [1.0] * 4, 3)) == 3
        assert spread([0.9, 0.8, 0.1], [1.0, 0.5, 0.0], 2)[0] == 0


class TestNearTies:
    def test_are_within_a_standard_error_of_the_best_at_no_higher_cost(self) -> None:
        draw = np.random.default_rng(3)
        for num_images in (10, 100, 1000):
            accuracies, costs = draw.integers(0, 51, 40) / 50, draw.integers(1, 6, 40).astype(float)
            gaps = [max(a for a, c in zip(accuracies, costs, strict=True) if c <= cost) for cost in costs] - accuracies
            errors = [math.sqrt(p * (1 - p) / num_images) for p in accuracies]
            found = near_ties(accuracies, costs, num_images)
            assert set(found) == {i for i in range(40) if gaps[i] < errors[i]}
            assert [gaps[i] for i in found] == sorted(gaps[i] for i in found)
            assert 0 < len(found) < 40

    def test_of_nothing(self) -> None:
        assert near_ties([], [], 100) == []


class TestFrontProbability:
    ACCURACIES = ([0.80, 0.86, 0.83], [0.84, 0.79, 0.88], [0.70, 0.90], [0.81, 0.83, 0.85])
    COSTS = (1.0, 2.0, 3.0, 1.0)

    def test_is_the_share_of_resamples(self) -> None:
        """Against all 27 x 27 x 4 x 27 resamples."""
        exact = np.zeros(4)
        means = [[fmean(drawn) for drawn in itertools.product(row, repeat=len(row))] for row in self.ACCURACIES]
        total = math.prod(len(m) for m in means)
        for drawn in itertools.product(*means):
            exact += [
                not any(
                    round(drawn[j] - drawn[i], 9) >= 0
                    and self.COSTS[j] <= self.COSTS[i]
                    and (round(drawn[j] - drawn[i], 9) > 0 or self.COSTS[j] < self.COSTS[i])
                    for j in range(4)
                )
                for i in range(4)
            ]
        exact /= total
        found = front_probability(self.ACCURACIES, self.COSTS, seed=1, draws=4000)
        for share, expected in zip(found, exact, strict=True):
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
        assert all(0.01 < expected < 0.99 for expected in exact)

    def test_rows_that_are_alike_share_it(self) -> None:
        found = front_probability([self.ACCURACIES[0]] * 2, [1.0, 1.0], seed=0)
        assert sum(found) == pytest.approx(1.0, abs=0.2)
        assert all(0.4 < share < 0.7 for share in found), "equal means are on the front together"

    def test_without_spread_it_is_the_front(self) -> None:
        accuracies, costs = [[0.5] * 3, [0.7] * 3, [0.6] * 3], [1.0, 2.0, 3.0]
        expected = front([[0.5, 1], [0.7, 2], [0.6, 3]], (True, False)).astype(float).tolist()
        assert front_probability(accuracies, costs, seed=0) == expected == [1.0, 1.0, 0.0]

    def test_equal_means_of_unequally_many_seeds_are_equal(self) -> None:
        """Resampled or not, the one is ahead in its last digit, and would be on the front at twice the cost."""
        assert np.mean([0.1] * 3) > np.mean([0.1] * 2)
        assert front_probability([[0.1] * 3, [0.1] * 2], [2.0, 1.0], seed=0) == [0.0, 1.0]
        assert front_probability([[0.1] * 2, [0.1] * 3], [1.0, 2.0], seed=0) == [1.0, 0.0]

    def test_is_the_same_for_the_same_seed(self) -> None:
        one, again, other = (front_probability(self.ACCURACIES, self.COSTS, seed=s) for s in (3, 3, 4))
        assert one == again != other

    def test_is_unknown_from_one_seed(self) -> None:
        assert front_probability([], [], seed=0) == []
        for accuracies in ([[0.5], [0.6]], [[0.5, 0.6], [0.7]]):
            assert all(math.isnan(share) for share in front_probability(accuracies, [1.0, 2.0], seed=0))


def test_the_winners_curse_is_what_validation_promised_beyond_test() -> None:
    rows = [Reached(searched=0.9, retrained=0.85, tested=0.8), Reached(searched=0.7, retrained=0.6, tested=0.65)]
    found = winners_curse(rows)
    assert found.searched == pytest.approx(0.075)
    assert found.retrained == pytest.approx(0.0)
    nothing = winners_curse([])
    assert math.isnan(nothing.searched)
    assert math.isnan(nothing.retrained)
