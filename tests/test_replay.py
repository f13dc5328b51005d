"""The replay's clock and book-keeping on made-up curves, the methods on it, and the packing of recorded curves."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper import pareto, spacefile
from sweeper.rows import CURVE_TYPES, TRIAL_TYPES
from sweeper.space import Space
from sweeper.trial import TrialConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("replay", "rivals", "syne_moasha", "regret", "record_curves", "search", "scale")
EPOCHS = 9
TREE = {
    "teacher": {"choice": ["none", "cnn", "vit"]},
    "student": {"model": {"choice": ["small", "big"]}},
    "synthetic": {"source": "ddpm", "ratio": {"choice": [0, 2]}},
    "loss": {
        "kl": {"weight": {"choice": [0.3, 1, 3], "when": {"teacher": ["cnn", "vit"]}}},
        "embedding": {"kind": {"choice": ["none", "sp"], "when": {"teacher": ["cnn", "vit"]}}, "weight": 1},
    },
    "train": {"lr": {"choice": [1e-3, 3e-3, 9e-3]}, "epochs": EPOCHS},
}
SPACE = Space(TREE)
CONFIGURATIONS = SPACE.joint_finite(list(SPACE.domains))


@pytest.fixture(autouse=True, scope="module")
def modules() -> Iterator[Any]:
    """The scripts, which import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def script(name: str) -> Any:
    return sys.modules[name]


def curve(accuracy: list[float], seconds: list[float], epochs: int | None = None, **shared: float) -> Any:
    paid = {(stage, "x"): value for stage, value in shared.items()}
    return script("replay").Curve(np.array(accuracy), np.array(seconds), epochs or len(accuracy), paid)


class Listed:
    """Proposes what it is given, and stops the trials that it is told to, each at an epoch."""

    def __init__(self, keys: list[str], stops: dict[str, int] | None = None) -> None:
        self.keys, self.stops = keys, stops or {}
        self.told: list[tuple[float, str, int, float]] = []
        self.ends: list[tuple[float, str, str, int]] = []
        self.starts: list[tuple[float, str]] = []

    def propose(self, now: float) -> tuple[str, str] | None:
        if not self.keys:
            return None
        key = self.keys.pop(0)
        self.starts.append((now, key))
        return f"{key}{len(self.starts)}", key

    def report(self, report: Any) -> bool:
        self.told.append((report.now, report.name[0], report.epoch, report.projected_seconds))
        return self.stops.get(report.name[0]) != report.epoch

    def end(self, report: Any, state: str) -> None:
        self.ends.append((report.now, report.name[0], state, report.epoch))


def test_lanes_keep_the_clock_and_the_books() -> None:
    curves = {
        "a": curve([0.1, 0.2, 0.3], [1.0, 2.0, 6.0], adapt=2.0),
        "b": curve([0.5, 0.6], [4.0, 8.0]),
        "c": curve([0.7], [3.0], adapt=5.0),
    }
    method = Listed(["a", "b", "c", "a"], stops={"a": 2})
    log = script("replay").Lanes(method, curves.__getitem__, 2).run()
    assert method.starts == [(0.0, "a"), (0.0, "b"), (2.0, "c"), (5.0, "a")]
    ends = [(2.0, "a", "stopped", 2), (5.0, "c", "completed", 1), (7.0, "a", "stopped", 2), (8.0, "b", "completed", 2)]
    assert method.ends == ends
    # projected: the artifacts, and the pace so far held to the end
    assert method.told[0] == (1.0, "a", 1, 2.0 + 3.0)
    epochs = [(1, "a", 1), (2, "a", 2), (4, "b", 1), (5, "c", 1), (6, "a", 1), (7, "a", 2), (8, "b", 2)]
    assert [told[:3] for told in method.told] == epochs
    # both lanes run all the time until 7 s; `adapt` is paid as 2 s and from the moment that c asks for more as 5 s
    np.testing.assert_allclose(log.device_R, [2 + 2, 4 + 2, 8 + 5, 10 + 5, 12 + 5, 14 + 5, 15 + 5])
    np.testing.assert_allclose(log.accuracy_R, [0.1, 0.2, 0.5, 0.7, 0.1, 0.2, 0.6])
    np.testing.assert_allclose(log.cost_R, [3, 4, 4, 8, 3, 4, 8])
    assert log.complete_R.tolist() == [False, False, False, True, False, False, True]
    assert (log.states, log.repeats, log.clock_s) == ({"completed": 2, "stopped": 2, "failed": 0}, 1, 8.0)


def test_a_budget_ends_the_replay_before_the_event_that_exceeds_it() -> None:
    curves = {"a": curve([0.1, 0.2], [1.0, 2.0], adapt=3.0)}
    run = [script("replay").Lanes(Listed(["a"] * 9), curves.__getitem__, 2).run(budget=b) for b in (4.9, 5.0, 8.9)]
    assert [len(log.device_R) for log in run] == [0, 2, 4]  # both lanes' epochs end at 3 + 2 device-seconds
    log = script("replay").Lanes(Listed(["a"] * 9), curves.__getitem__, 2).run(trials=3)
    assert log.states["completed"] == 3


def test_a_recorded_failure_fails_again_and_frees_its_lane() -> None:
    curves = {"a": curve([0.1, 0.2], [1.0, 2.0], epochs=5), "b": curve([], [], epochs=5), "c": curve([0.4], [1.0])}
    method = Listed(["a", "b", "c"])
    log = script("replay").Lanes(method, curves.__getitem__, 1).run()
    assert method.ends == [(2.0, "a", "failed", 2), (2.0, "b", "failed", 0), (3.0, "c", "completed", 1)]
    assert log.states["failed"] == 2
    np.testing.assert_allclose(log.device_R, [1, 2, 3])


def test_a_key_is_the_same_for_a_point_and_for_the_trial_made_of_it() -> None:
    key_of = script("replay").key_of
    keys = set()
    for values in CONFIGURATIONS:
        point = SPACE.sample(lambda path, _, values=values: values[path])
        config = TrialConfig.model_validate(point).resolved()
        keys.add(key_of(SPACE, point))
        assert key_of(SPACE, config.model_dump(mode="json")) == key_of(SPACE, point)
    assert len(keys) == len(CONFIGURATIONS) == 2 * 2 * 3 * (1 + 2 * 3 * 2)
    assert not any(value in ("none", None) for key in keys for _, value in key)


def test_the_recorded_grid_has_684_configurations_which_the_space_takes_as_points(tmp_path: Path) -> None:
    import yaml

    recorder = script("record_curves")
    tree = recorder.recording(["trial.train.schedule=constant"], None)
    points = tree["search"]["points"]
    assert len(points) == tree["search"]["trials"] == 684
    path = tmp_path / "recording.yaml"
    path.write_text(yaml.safe_dump(recorder.recording(["trial.train.schedule=constant"], 4)))
    file = spacefile.load(path)
    assert len(file.config.search.points) == 4
    assert file.config.trial["train"]["schedule"] == "constant"
    assert file.config.search.scheduler.model_dump()["kind"] == "fifo"


def made_up(values: dict[str, Any]) -> tuple[list[float], list[float], dict[str, float]]:
    """A curve by closed form: teachers, images and the middle learning rate help; the big student costs threefold."""
    taught = values["teacher"] != "none"
    best = 0.5 + 0.1 * taught + 0.1 * bool(values["synthetic.ratio"]) + 0.15 * (values["student.model"] == "big")
    best -= 0.2 * abs(math.log(values["train.lr"] / 3e-3)) / math.log(3)
    best += 0.02 * math.log(values.get("loss.kl.weight", 1)) + 0.03 * (values.get("loss.embedding.kind") == "sp")
    pace = 3.0 if values["student.model"] == "big" else 1.0
    epochs = range(1, EPOCHS + 1)
    shared = {"adapt": 2.0 * taught, "targets": 4.0 * taught, "synthetic": 3.0 * values["synthetic.ratio"]}
    return [best * (1 - 0.7**e) for e in epochs], [pace * e for e in epochs], shared


def made_up_run(folder: Path) -> Path:
    """A run folder with the tables that a recording leaves, in which the last configuration fails after 2 epochs."""
    folder.mkdir()
    trials, curves = [], []
    for number, values in enumerate(CONFIGURATIONS):
        point = SPACE.sample(lambda path, _, values=values: values[path])
        config = TrialConfig.model_validate(point).resolved()
        accuracy, seconds, shared = made_up(values)
        failed = number == len(CONFIGURATIONS) - 1
        row = dict.fromkeys(TRIAL_TYPES) | {
            "trial": number,
            "state": "failed" if failed else "completed",
            "config": config.model_dump_json(),
            **{f"gpu_hours_{stage}": value / 3600 for stage, value in shared.items()},
        }
        trials.append(row)
        for epoch in range(1, 3 if failed else EPOCHS + 1):
            report = (number, epoch, accuracy[epoch - 1], 0.1, seconds[epoch - 1])
            curves.append(dict(zip(CURVE_TYPES, report, strict=True)))
    pq.write_table(pa.Table.from_pylist(trials, pa.schema(TRIAL_TYPES)), folder / "trials.parquet")
    pq.write_table(pa.Table.from_pylist(curves[::-1], pa.schema(CURVE_TYPES)), folder / "curves.parquet")
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, modules: Any) -> Path:
    folder = tmp_path_factory.mktemp("curves")
    run = made_up_run(folder / "run")
    assert script("record_curves").pack(run, SPACE, folder / "final.parquet", {"overrides": ""}) == len(CONFIGURATIONS)
    return folder / "final.parquet"


def test_packed_curves_come_back(packed: Path) -> None:
    replay = script("replay")
    grid = replay.Grid.read(packed, SPACE)
    assert len(grid.curves) == len(CONFIGURATIONS)
    assert sum(found.failed for found in grid.curves.values()) == 1
    values = CONFIGURATIONS[40]
    accuracy, seconds, shared = made_up(values)
    found = grid(replay.key_of(SPACE, SPACE.sample(lambda path, _: values[path])))
    np.testing.assert_allclose(found.accuracy_E, accuracy, rtol=1e-6)
    np.testing.assert_allclose(found.seconds_E, seconds, rtol=1e-6)
    assert found.shared_seconds == pytest.approx(sum(shared.values()))
    assert found.cost(7.0).total == pytest.approx(7.0 + sum(shared.values()))
    final, anytime = (grid.points(way)[0] for way in (False, True))
    assert (len(final), len(anytime)) == (len(CONFIGURATIONS) - 1, (len(CONFIGURATIONS) - 1) * EPOCHS + 2)
    trained = sum(float(c.seconds_E[-1]) for c in grid.curves.values())
    assert grid.device_seconds(0.5) == pytest.approx(trained / 2 + 2 * (2 + 4) + 6)  # two teachers, one image set


@pytest.mark.parametrize("name", ["random", "random, never twice", "optuna tpe", "optuna nsga2", "asha", "asha + tpe"])
def test_rivals_search(packed: Path, name: str) -> None:
    replay, rivals = script("replay"), script("rivals")
    grid = replay.Grid.read(packed, SPACE)
    logs = []
    for _ in range(2):
        method = rivals.METHODS[name](rivals.Task(SPACE, grid, EPOCHS, seed=3))
        logs.append(replay.Lanes(method, grid, 4).run(trials=40))
    np.testing.assert_array_equal(logs[0].accuracy_R, logs[1].accuracy_R)
    states = logs[0].states
    assert sum(states.values()) == 40
    assert (states["stopped"] > 10) == name.startswith("asha")
    assert (logs[0].repeats == 0) or name != "random, never twice"


def test_sweeper_searches_with_its_own_desk_and_scheduler(packed: Path) -> None:
    replay, rivals = script("replay"), script("rivals")
    grid = replay.Grid.read(packed, SPACE)
    logs = []
    for _ in range(2):
        method = rivals.Sweeper(rivals.Task(SPACE, grid, EPOCHS, seed=1))
        logs.append(replay.Lanes(method, grid, 4).run(trials=60))
        outcomes = [trial.user_attrs["outcome"] for trial in method.study.trials()]
        assert len(outcomes) == 60
    np.testing.assert_array_equal(logs[0].accuracy_R, logs[1].accuracy_R)
    assert {state: sum(o["state"] == state for o in outcomes) for state in logs[0].states} == logs[0].states
    assert logs[0].states["stopped"] > 15
    # what the journal says of the trials is what the lanes did
    assert sum(o["cost"]["train"] for o in outcomes) == pytest.approx(
        float(logs[0].device_R[-1]) - (2 * 6 + 6), rel=1e-6
    )


def test_moasha_as_shipped_confuses_orders_with_ranks_and_ordered_does_not() -> None:
    pytest.importorskip("syne_tune")
    from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(20):
        points = rng.normal(size=(30, 2))
        fronts = pareto.ranks(points, False)
        ranks = script("syne_moasha").ordered_priority()(points)
        assert sorted(ranks) == list(range(30))
        assert (np.diff(fronts[np.argsort(ranks)]) >= 0).all()  # nobody before one of a better front
        assert ranks[np.argmin(points[:, 0])] == 0
        shipped = NonDominatedPriority()(points)
        wrong += (np.diff(fronts[np.argsort(shipped)]) < 0).any()
    assert wrong == 20


def test_moasha_is_hastened_and_not_changed() -> None:
    pytest.importorskip("syne_tune")
    found = importlib.util.find_spec("syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority")
    assert found is not None
    assert found.loader is not None
    shipped = importlib.util.module_from_spec(found)  # a copy of its own, as it lies on the disk
    found.loader.exec_module(shipped)
    rng = np.random.default_rng(0)
    for number in range(1, 30):
        points = rng.integers(0, 9, size=(number, 2)) / 7  # with equal ones
        mask = shipped.pareto_efficient(points)
        np.testing.assert_array_equal(script("syne_moasha").members(points), mask)
        for part in (points, points[mask]):
            ranks = shipped.compute_epsilon_net(part, 0)
            np.testing.assert_array_equal(script("syne_moasha").net_ranks(part, 0), ranks)


def test_shares_follow_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replay, regret = script("replay"), script("regret")
    monkeypatch.setattr(regret, "WORTH", 0.5)
    assert regret.Scale.of((np.array([0.3, 0.9]), np.exp([1.0, 2.0]))).reference == pytest.approx((0.5, 2.0))
    monkeypatch.setattr(regret, "WORTH", 0.0)
    accuracy, cost = np.array([0.5, 0.7, 0.9]), np.exp([1.0, 2.0, 3.0])
    scale = regret.Scale.of((np.append(accuracy, 0.1), np.append(cost, math.exp(4.0))))
    assert scale.reference == pytest.approx((0.1, 4.0))
    assert scale.whole == pytest.approx(0.4 * 3 + 0.2 * 2 + 0.2 * 1)
    log = replay.Log(np.array([1.0, 2.0, 3.0]), accuracy, cost, np.array([False, True, True]), {}, 0, 3.0)
    moments = np.array([0.5, 1.0, 2.5, 3.0])
    np.testing.assert_allclose(scale.shares(log, True, moments), np.array([0, 1.2, 1.6, 1.8]) / 1.8)
    np.testing.assert_allclose(scale.shares(log, False, moments), np.array([0, 0, 1.2, 1.4]) / 1.8)


def test_speedup_is_the_time_to_randoms_last() -> None:
    regret = script("regret")
    slow = np.tile(np.linspace(0, 0.5, len(regret.MOMENTS)), (3, 1))
    assert regret.speedup(slow, slow) == pytest.approx(1.0)
    assert regret.speedup(np.minimum(4 * slow, 0.9), slow) == pytest.approx(4.0, rel=0.03)
    assert regret.speedup(0.9 * slow, slow) is None


def test_the_benchmark_says_what_it_says(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = script("search")
    made = script("replay").Grid.read(packed, SPACE)
    monkeypatch.setattr(search, "grid", lambda folder, name: made)
    options = ["--folder", str(packed.parent), "--seeds", "4", "--workers", "1", "--figure", str(tmp_path / "f.png")]
    search.main([*options, "--methods", "random", "sweeper"])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["speedup_over_random"] > 1
    assert 0 <= found["regret_sweeper"] <= found["regret_random"] < 1
    assert {name for table in found["tables"].values() for name in table} == {"random", "sweeper"}
    assert len(found["tables"]) == 2
    assert sum(line.startswith("sweeper ") for line in lines) == 2
    assert (tmp_path / "f.png").stat().st_size > 10_000
