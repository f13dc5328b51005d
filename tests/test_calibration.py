"""Timing models: every run of a plan works on made-up data, is measured once, and corrects the counts of its like.

No figure is compared with a clock: what is asserted is what was measured, how often, and what follows from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import dataset_index, space_of, sweep_config
from small_sweep import write_space

from sweeper import costs, devices, place, planning, spacefile, student, timing
from sweeper.calibration import Calibration, folder_from_environment
from sweeper.costs import Costs
from sweeper.plan import make_plan
from sweeper.prepared import Options, prepare
from sweeper.shard_cache import FOLDER_VARIABLE
from sweeper.store import Store

SLOT = devices.slot("cpu", is_here=True)
SMALL: dict[str, Any] = {
    "teacher": {"choice": ["cnn", "cnn+vit", "none"]},
    "student": {"model": "test_efficientnet"},
    "synthetic": {"source": "sd", "ratio": {"choice": [0, 1]}},
    "loss": {"kl": {"weight": 1.0}, "embedding": {"kind": {"choice": ["none", "cosine"]}}},
    "train": {"epochs": 4, "batch_size": 8},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is enough to see that it works."""
    monkeypatch.setattr(timing, "SPAN_S", 1e-9)


def test_a_call_is_timed_by_the_median_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SPAN_S", 10.0)
    lengths = iter([50.0, 3.0, 2.0, 4.0, 1.0])  # the first one warms up
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(lengths)

    assert timing.typical_s(call, lambda: now) == 2.5
    assert next(lengths, None) is None


def costs_of(store: Store, calibration: Calibration | None = None, **changes: Any) -> Costs:
    config = sweep_config(**{"trial": SMALL, **changes})
    space = space_of(config)
    return Costs(make_plan(config, space, dataset_index(), store), space, SLOT, calibration)


def runs_of(found: Costs) -> dict[str, list[Any]]:
    for item in found.plan.artifacts():
        if item.kind != "images":
            found.artifact(item)
    sorts: dict[str, list[Any]] = {}
    for estimate in found._estimates.values():
        sorts.setdefault(estimate.sort, []).append(estimate.run)
    return sorts


@dataclass
class Told:
    """A run that says what it would measure, and counts how often it was asked."""

    name: str
    seconds: Mapping[str, float]
    asked: list[str] = field(default_factory=list)

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def measure(self, device: torch.device) -> Mapping[str, float]:
        self.asked.append(str(device))
        if not self.seconds:
            raise RuntimeError("does not work here")
        return self.seconds


def test_every_model_of_a_plan_can_be_timed(store: Store, generator_folder: Path) -> None:
    """Students alone, under cached targets and under an ensemble's; teachers; a generator."""
    tiny = {"kind": "diffusers", "model": str(generator_folder), "steps": 2}
    config = sweep_config(trial=SMALL, synthetic={"sd": tiny})
    index = dataset_index(class_names=[str(i) for i in range(10)], num_train=20)
    space = space_of(config)
    runs = runs_of(Costs(make_plan(config, space, index, store), space, SLOT))
    assert {sort: len(found) for sort, found in runs.items()} == {"student": 5, "teacher": 2, "generator": 1}
    assert {(run.trial.teacher, len(run.teachers)) for run in runs["student"]} == {("none", 0), ("any", 1), ("any", 2)}
    names = {"student": {"make", "step", "validate"}, "teacher": {"view", "probe"}, "generator": {"image"}}
    for sort, found in runs.items():
        for run in found:
            seconds = run.measure(torch.device("cpu"))
            assert set(seconds) == names[sort]
            assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize("loss", ["at", "jacobian", "crd", "simkd"])
def test_a_student_is_timed_under_its_own_loss(store: Store, loss: str) -> None:
    """Maps and gradients of a teacher in the loop, a bank, a borrowed classifier."""
    trial = {**SMALL, "teacher": "cnn", "loss": {"embedding": {"kind": loss}}, "synthetic": {"ratio": 0}}
    (run,) = runs_of(costs_of(store, trial=trial))["student"]
    assert run.trial.loss.embedding.kind == loss
    assert run.trial.is_online == (loss in ("at", "jacobian"))
    assert run.measure(torch.device("cpu"))["step"] > 0


def test_a_large_model_is_timed_on_fewer_images(store: Store) -> None:
    """Of which a whole step would take half a minute; the rest is in proportion."""
    trial = {**SMALL, "teacher": "none", "student": {"model": "resnet18"}, "train": {"epochs": 2, "batch_size": 512}}
    slow = devices.Slot("cpu", True, 1e9, "slow")
    config = sweep_config(trial=trial)
    space = space_of(config)
    found = Costs(make_plan(config, space, dataset_index(), store), space, slow)
    (run,) = runs_of(found)["student"]
    timed = run.trial.train.batch_size
    assert 2 <= timed < 512
    (step,) = [(e.counted or {})["step"] for e in found._estimates.values() if e.sort == "student"]
    assert step <= costs.CALL_S + costs.BATCH_S
    _, task = found.training() or (0.0, 0.0)
    forward = student.flops_an_image(run.student, 3, 32) or 0.0
    validation = 6 * (forward / 1e9 + costs.BATCH_S / costs.EVALUATION_BATCH)
    assert task == pytest.approx(2 * (step * 512 / timed + validation))


@pytest.mark.parametrize(("flops", "batch", "steps"), [(1e12, 64, 10), (1e8, 8, 10), (2e6, 1, 1)])
def test_a_slow_generator_is_timed_on_fewer_images_and_steps(
    store: Store, generator_folder: Path, monkeypatch: pytest.MonkeyPatch, flops: float, batch: int, steps: int
) -> None:
    monkeypatch.setattr("sweeper.generators.diffusers.flops_an_image", lambda config, names: 2.5e7)
    drawn = {"kind": "diffusers", "model": str(generator_folder), "steps": 10, "batch_size": 64}
    config = sweep_config(trial=SMALL, synthetic={"sd": drawn})
    space = space_of(config)
    index = dataset_index(class_names=[str(i) for i in range(10)], num_train=20)
    found = Costs(make_plan(config, space, index, store), space, devices.Slot("cpu", True, flops, ""))
    (run,) = runs_of(found)["generator"]
    assert (run.config.batch_size, run.config.steps, run.slowdown) == (batch, steps, 10 / steps)


def test_it_is_measured_once_and_found_again(tmp_path: Path) -> None:
    run, broken = Told("a", {"step": 2.0}), Told("b", {})
    first = Calibration(SLOT, 1, tmp_path)
    assert first.seconds(run) is None
    assert first.measure([run, broken, run], 60.0) == 1
    assert run.asked == ["cpu"]
    again = Calibration(SLOT, 1, tmp_path)
    assert again.measure([run], 60.0) == 0
    assert again.seconds(run) == {"step": 2.0}
    assert again.seconds(broken) is None
    assert run.asked == ["cpu"]
    assert again.measure([run], 60.0, again=True) == 1
    assert run.asked == ["cpu", "cpu"]


@pytest.mark.parametrize("change", ["lanes", "device", "versions"])
def test_another_device_version_or_company_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run = Told("a", {"step": 2.0})
    Calibration(SLOT, 1, tmp_path).measure([run], 60.0)
    if change == "versions":
        monkeypatch.setattr("sweeper.calibration.versions", lambda: {"torch": "99.0"})
    slot = devices.slot("NVIDIA H100", is_here=True) if change == "device" else SLOT
    assert Calibration(slot, 2 if change == "lanes" else 1, tmp_path).seconds(run) is None


@pytest.mark.parametrize("content", ["", "{}", '{"seconds": {"step": "soon"}}', "[1]"])
def test_a_damaged_measurement_is_taken_again(tmp_path: Path, content: str) -> None:
    run = Told("a", {"step": 2.0})
    Calibration(SLOT, 1, tmp_path).measure([run], 60.0)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["seconds"] == {"step": 2.0}
    path.write_text(content)
    assert Calibration(SLOT, 1, tmp_path).seconds(run) is None


def test_after_the_deadline_only_the_first_is_measured(tmp_path: Path) -> None:
    runs = [Told(name, {"step": 1.0}) for name in "abc"]
    assert Calibration(SLOT, 1, tmp_path).measure(runs, -1.0) == 1
    assert [len(run.asked) for run in runs] == [1, 0, 0]


def test_measurements_lie_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    assert folder_from_environment() == tmp_path / "calibration"
    monkeypatch.delenv("SWEEPER_CACHE")
    assert folder_from_environment() == Path("~/.cache/sweeper/calibration").expanduser()


class Known(Calibration):
    """Measurements that are made up, by a function of the run."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def seconds(self, run: Any) -> Any:
        return self.told(run)


def test_a_run_times_its_models_and_a_rehearsal_none(
    tmp_path: Path, generator_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache" / "shards"))
    alone: dict[str, Any] = {"search": {"trials": 1}, "finalists": {"count": 1, "seeds": 1, "ablate": False}}
    space = spacefile.load(write_space(tmp_path / "space.yaml", generator_folder, **alone), ())

    def told(*, is_passing: bool) -> tuple[str, int]:
        options = Options(store=str(tmp_path / "store"), is_passing=is_passing)
        basis = planning.for_run(prepare(space, options), options).basis
        return basis, len(list(folder_from_environment().glob("*.json")))

    basis, num_timed = told(is_passing=True)
    assert (basis.startswith("counted at"), num_timed) == (True, 0)
    basis, num_timed = told(is_passing=False)
    assert basis.startswith("timed on this device")
    assert num_timed > 0
    assert told(is_passing=True)[0].startswith("timed on this device")  # what is known is used


def test_counts_of_models_that_were_not_timed_are_corrected_by_those_that_were(store: Store) -> None:
    """One student took three times its count: so will its other losses."""
    alone = costs_of(store)
    counted = {id(e.run): e.counted for e in alone._estimates.values()}
    assert all(counted.values())
    before, task = alone.training() or (0.0, 0.0)

    def told(run: Any) -> Any:
        if isinstance(run, timing.StudentRun) and not run.teachers:
            (own,) = [
                e.counted for e in found._estimates.values() if isinstance(e.run, type(run)) and not e.run.teachers
            ]
            return {name: 3 * value for name, value in (own or {}).items()}
        return None

    found = costs_of(store, Known(told))
    assert (found.training() or (0.0, 0.0))[1] == pytest.approx(3 * task)
    assert before == 0.0
    assert found.are_trainings_measured
    for name in ("cnn", "vit"):  # teachers are another sort
        assert found.artifact(found.plan.adapt[name]) == alone.artifact(alone.plan.adapt[name])


@pytest.mark.parametrize(("trainings_s", "expected"), [(1e9, "SSTTS"), (1e-9, "TTSSS")])
def test_what_weighs_most_is_timed_first_and_each_model_before_its_other_losses(
    store: Store, trainings_s: float, expected: str
) -> None:
    asked: list[Any] = []

    class Listening(Known):
        def measure(self, runs: Any, within_s: float, *, again: bool = False) -> int:
            asked.extend({id(run): run for run in runs}.values())
            return 0

    students = {"model": {"choice": ["test_efficientnet", "test_vit"]}}
    trial = {**SMALL, "teacher": {"choice": ["cnn", "vit", "none"]}, "student": students}
    found = costs_of(store, Listening(lambda run: None), trial=trial)
    found.calibrate([i for i in found.plan.artifacts() if i.kind in ("adapt", "targets")], trainings_s, 1.0)
    order = "".join("S" if isinstance(run, timing.StudentRun) else "T" for run in asked)
    assert order[:5] == expected
    first = [run.student.model for run in asked if isinstance(run, timing.StudentRun)][:2]
    assert sorted(first) == ["test_efficientnet", "test_vit"]


def test_a_training_is_its_model_its_steps_and_its_validation(store: Store) -> None:
    found = costs_of(store, Known(lambda run: {"make": 7.0, "step": 0.5, "validate": 0.01}))
    # 12 real images, or as many synthetic ones besides: 2 (1.5 rounded to even) or 3 steps of 8; 6 images of validation
    expected = [7.0 + 4 * (steps * 0.5 + 6 * 0.01) for steps in (2, 3)]
    assert found.training() == (0.0, pytest.approx(sum(expected) / 2))


def test_a_gpu_that_is_not_here_is_counted_by_its_data_sheet() -> None:
    for name, known in (("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A10G", "A10G"), ("Tesla T4", "T4"), ("L4", "L4")):
        slot = devices.slot(name, is_here=False)
        assert slot.flops == devices.REACHED_SHARE * devices.PEAK_FLOPS[known]
        assert f"{known}'s data sheet" in slot.basis
        assert slot.processor == "GPU"
    assert "assumed" in devices.slot("NVIDIA A1000", is_here=False).basis
    assert devices.slot("cpu", is_here=True).processor == "CPU"


def test_lanes_of_this_machine_are_those_that_ray_would_have() -> None:
    config = sweep_config(search={"trials": 1000}, resources={"cpus_per_trial": 2})
    where = place.Place(SLOT, {"CPU": 9.0, "GPU": 0.0})
    assert where.lanes(config) == 4
    assert place.Place(SLOT, None).lanes(config) is None
