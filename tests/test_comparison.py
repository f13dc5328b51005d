"""Runs side by side: one reference point, a difference that is right by hand, and an interval that knows its seeds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from run_samples import cost, final_row, write_full_run, write_run

from sweeper import comparison
from sweeper.cli import main
from sweeper.errors import InputError
from sweeper.results import RunFolder


def rows(*points: tuple[float, float], spread: float = 0.0, seeds: int = 3) -> list[comparison.Row]:
    """Rows at accuracy and hours, whose seeds lie `spread` apart."""
    offsets = spread * (np.arange(seeds) - (seeds - 1) / 2)
    return [np.column_stack([accuracy + offsets, np.full(seeds, hours)]) for accuracy, hours in points]


def test_the_hypervolume_is_the_accuracy_that_a_budget_buys_averaged_in_logs() -> None:
    one, other = comparison.measure([rows((0.8, 1.0)), rows((0.5, 1.0), (0.9, 4.0))])
    whole = math.log(8.0)  # from 1 hour to twice the dearest row's 4
    assert one["hypervolume"] == pytest.approx(0.8)
    assert other["hypervolume"] == pytest.approx((0.5 * math.log(4) + 0.9 * math.log(2)) / whole)
    assert one["difference"] is None
    assert other["difference"] == pytest.approx(other["hypervolume"] - one["hypervolume"])


def test_all_runs_share_one_reference_point() -> None:
    alone = comparison.measure([rows((0.8, 1.0)), rows((0.7, 1.0))])
    beside = comparison.measure([rows((0.8, 1.0)), rows((0.7, 1.0)), rows((0.7, 100.0))])
    assert alone[0]["hypervolume"] == beside[0]["hypervolume"] == pytest.approx(0.8), "what nothing cheaper beats"
    assert beside[2]["hypervolume"] == pytest.approx(0.7 * math.log(2) / math.log(200))


def test_the_interval_holds_the_difference_and_grows_with_the_spread_over_seeds() -> None:
    widths = []
    for spread in (0.0, 0.01, 0.04):
        _, found = comparison.measure([rows((0.8, 1.0), spread=spread), rows((0.85, 1.0), spread=spread)])
        low, high = found["difference_low"], found["difference_high"]
        assert low <= found["difference"] <= high
        widths.append(high - low)
    assert widths[0] == pytest.approx(0.0, abs=1e-12)
    assert widths[1] < widths[2]
    # Means of 3 of (-1, 0, 1) spread: variance 2/9 each, so 4/9 of the spread squared for the difference of two.
    assert widths[2] / 2 == pytest.approx(1.96 * 0.04 * 2 / 3, rel=0.15)


def test_equal_runs_differ_by_nothing() -> None:
    same = rows((0.8, 1.0), (0.9, 2.0), spread=0.01)
    _, found = comparison.measure([same, same])
    assert found["difference"] == 0.0
    assert found["difference_low"] < 0 < found["difference_high"], "though another draw of seeds would say otherwise"


def test_one_seed_has_no_interval() -> None:
    _, found = comparison.measure([rows((0.8, 1.0), seeds=1), rows((0.9, 1.0))])
    assert found["difference"] == pytest.approx(0.1)
    assert (found["difference_low"], found["difference_high"]) == (None, None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_full_run(folder / "one" / "aaa111", name="one")
    other = write_full_run(folder / "two" / "bbb222", name="two")
    other.write_pareto([final_row(1, accuracy_test=0.99), final_row(2)])
    write_run(folder / "three" / "ccc333", name="three")  # of a version that kept no seeds
    return folder


def test_three_runs_make_one_table_and_one_figure(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["compare", "one", "two", "three", "--results", str(results), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert max(len(line.rstrip()) for line in done.output.splitlines() if "hypervolume" in line and "run" in line) <= 80
    for words in ("one/aaa111", "two/bbb222", "three/ccc333", "hypervolume", "no interval", "name: one | two | three"):
        assert words in done.output
    assert sorted(path.name for path in out.iterdir()) == [f"compare.{kind}" for kind in ("csv", "pdf", "png", "tex")]
    with (out / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == ["one/aaa111", "two/bbb222", "three/ccc333"]
    assert [bool(line["difference_low"]) for line in lines] == [False, True, False]


def test_equal_runs_give_equal_files(results: Path, tmp_path: Path) -> None:
    runs = [RunFolder(results / "one" / "aaa111"), RunFolder(results / "two" / "bbb222")]
    written = [comparison.write(comparison.compare(runs), tmp_path / side) for side in "ab"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize(("names", "words"), [(["one"], "two runs or more"), (["one", "nowhere"], "is not one")])
def test_what_can_not_be_compared_is_a_users_mistake(results: Path, names: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["compare", *names, "--results", str(results)])
    assert done.exit_code == 2
    assert words in done.output


def test_a_run_without_a_tested_row_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "a1") for name in ("one", "two")]
    runs[1].write_pareto([final_row(1, accuracy_test=float("nan"), cost=cost(1.0))])
    with pytest.raises(InputError, match="no row with an accuracy on test"):
        comparison.compare(runs)
    (runs[0].path / "pareto.parquet").unlink()
    with pytest.raises(InputError, match="no Pareto table yet"):
        comparison.compare(runs)
