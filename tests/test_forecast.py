"""The forecast against counted operations, made-up records of the store and closed forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sweeper import costs, devices, flops, forecast, place, student, zoo
from sweeper.config import SweepConfig
from sweeper.datasets import digits, digits_pool
from sweeper.generators import diffusers as generators
from sweeper.ledger import Charge
from sweeper.plan import Artifact, Plan, make_plan
from sweeper.schedulers import asha, mo_asha
from sweeper.space import Space
from sweeper.store import Store
from sweeper.teachers import timm as teachers
from sweeper.trial import StudentConfig

TEACHER = {"kind": "timm", "model": "test_resnet", "weights": "none", "input_size": 32}
GENERATOR = {"kind": "diffusers", "model": "zoo:generator", "steps": 3, "max_ratio": 1}
NAMES = [str(i) for i in range(10)]
ONE = devices.slot("cpu", is_here=True)
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="rates of a CPU slot")


def sweep(
    *, trial: dict[str, Any] | None = None, search: dict[str, Any] | None = None, **changes: Any
) -> tuple[SweepConfig, Space]:
    values: dict[str, Any] = {
        "name": "t",
        "dataset": {"kind": "digits", "train_per_class": 3},
        "views": {"per_image": 2},
        "teachers": {"cnn": TEACHER},
        "trial": {
            "teacher": {"choice": ["cnn", "none"]},
            "student": {"model": "test_efficientnet"},
            "loss": {"kl": {"weight": 1.0}},
            "train": {"epochs": 8, "batch_size": 32, "epoch_size": 64},
            **(trial or {}),
        },
        "search": {"trials": 10, "scheduler": {"kind": "fifo"}, "front": "final", **(search or {})},
        "finalists": {"count": 1, "seeds": 1, "ablate": False},
    }
    config = SweepConfig.model_validate({**values, **changes})
    return config, Space(config.trial)


def planned(config: SweepConfig, space: Space, store: Store) -> Plan:
    dataset: Any = config.dataset
    return make_plan(config, space, digits.index(dataset, config.seed), store)


def expected(store: Store, **changes: Any) -> forecast.Forecast:
    config, space = sweep(**changes)
    return forecast.forecast(planned(config, space, store), space, store)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings as if Ray took no time beside them."""
    for name in ("DRIVER_CORES", "LANE_CORES"):
        monkeypatch.setattr(place, name, 0.0)


def keep(store: Store, item: Artifact, seconds: float, *, units: int | None = None, device: str = "cpu") -> None:
    """A record of `item`, as if it had taken so long."""
    prefix = store.staging()
    store.write_bytes(prefix, "x", b"x")
    stage: Any = item.kind
    charge = Charge(stage=stage, key=item.key, seconds=seconds, device=device, units=units or item.units)
    store.commit(item.key, item.kind, dict(item.spec), prefix, charge=charge)


def test_operations_of_a_linear_layer() -> None:
    assert flops.forward_flops(lambda: nn.Linear(8, 4), lambda m: m(torch.empty(3, 8))) == 2 * 3 * 8 * 4


def test_a_model_that_looks_at_values_is_not_counted() -> None:
    assert flops.forward_flops(lambda: nn.Linear(8, 4), lambda m: m(torch.empty(3, 8)).sum().item()) is None


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit"])
def test_a_student_counts_as_a_real_one_does(model: str) -> None:
    config = StudentConfig(model=model)
    built = student.build(config, 10, 32, seed=0).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        built(torch.zeros(1, 3, 32, 32))
    assert student.flops_an_image(config, 10, 32) == counter.get_total_flops() > 1e6


def test_pretrained_students_are_counted_without_their_weights() -> None:
    named, random = StudentConfig(model="resnet18", init="pretrained"), StudentConfig(model="resnet18")
    assert student.flops_an_image(named, 10, 32) == student.flops_an_image(random, 10, 32)


def test_teachers_are_counted_without_their_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.resolve("cnn"), tmp_path / "cnn"))
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"nobody reads them")
    counter = FlopCounterMode(display=False)
    real = teachers.build(teachers.Config(weights="zoo:cnn"), NAMES)
    with torch.no_grad(), counter:
        real(torch.zeros(1, 3, real.input_size, real.input_size))
    assert teachers.flops_an_image(teachers.Config(weights=str(folder)), NAMES) == counter.get_total_flops()
    assert teachers.flops_an_image(teachers.Config(model="resnet18", weights="hub"), NAMES)


def test_generators_count_their_steps() -> None:
    def count(**changes: Any) -> float | None:
        return generators.flops_an_image(generators.Config.model_validate({**GENERATOR, **changes}), NAMES)

    one = count(steps=1)
    assert one
    assert count(steps=7) == 7 * one
    assert count(steps=1, guidance=3.0) == 2 * one
    assert count(model="nobody/has-this-one") is None


def test_generators_of_text_and_latents_are_counted(tmp_path: Path) -> None:
    settings = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "in_channels": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 16,
    }
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model_index.json").write_text("{}")

    def count(**changes: Any) -> float:
        config = generators.Config(model=str(tmp_path), prompt="a {label}", steps=1, **changes)
        return generators.flops_an_image(config, NAMES) or 0.0

    assert count(size=16) > 3 * count() > 0
    denoiser = count()
    (tmp_path / "vae").mkdir()
    widths = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    widths |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "_class_name": "AutoencoderKL"}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(widths))
    assert count(size=64) == count() > denoiser  # 8 x 8 latents, and decoding them


@ON_CPU
def test_an_empty_store(store: Store) -> None:
    found = expected(store)
    assert list(found.seconds) == ["adapt", "targets", "search", "finalists"]
    assert not found.measured
    assert not found.unknown
    assert found.seconds["search"] == pytest.approx(10 * found.seconds["finalists"])
    forward = student.flops_an_image(StudentConfig(model="test_efficientnet"), 10, 32)
    assert forward is not None
    batches = 8 * (2 + 200 / costs.EVALUATION_BATCH)
    work = 8 * forward * (3 * 64 + 200)
    assert found.seconds["finalists"] == pytest.approx(work / devices.RATE_CPU_FLOPS + batches * costs.BATCH_S)


@ON_CPU
def test_a_space_is_averaged_over_its_combinations(store: Store) -> None:
    def final(epochs: Any) -> float:
        trial = {"train": {"epochs": epochs, "epoch_size": 64, "batch_size": 32}}
        return expected(store, trial=trial).seconds["finalists"]

    assert final({"choice": [2, 4, 12]}) == pytest.approx((final(2) + final(4) + final(12)) / 3)


@ON_CPU
def test_budgets_and_stops(store: Store) -> None:
    whole = expected(store).seconds["search"]
    scheduler = {"kind": "asha", "grace": 2, "reduction": 2}
    share = asha.expected_share(asha.Config(grace=2, reduction=2), 8, 10)
    assert expected(store, search={"scheduler": scheduler}).seconds["search"] == pytest.approx(whole * share)
    capped = expected(store, search={"trials": 10**6, "gpu_hours": 0.01})
    assert capped.seconds["search"] == pytest.approx(36 - capped.seconds["adapt"] - capped.seconds["targets"])


def test_the_share_that_asha_trains() -> None:
    config = asha.Config(grace=0.25, reduction=3)
    assert asha.expected_share(config, 40) == pytest.approx(1 / 4 + 1 / 3 * 1 / 2 + 1 / 9 * 1 / 4)
    assert asha.expected_share(asha.Config(grace=40), 40) == 1.0


def test_few_trials_pass_more_often_and_stops_come_late() -> None:
    """Of 1, 2, 3, 4 records 1, 1, 1 and 2 of `rungs.Rungs` are among the first 1/4 and one more."""
    config = mo_asha.Config(grace=8, reduction=4, keep=0)
    passing = (1 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    assert mo_asha.expected_share(config, 15, 4) == pytest.approx(8 / 15 + passing * 7 / 15 + (1 - passing) / 15)
    assert mo_asha.expected_share(config, 15, 10**6) == pytest.approx(8 / 15 + 7 / 60 + 3 / 4 / 15, rel=1e-4)
    assert mo_asha.expected_share(config, 15) == pytest.approx(8 / 15 + 7 / 60)


@ON_CPU
def test_what_this_teacher_took_before_is_scaled(store: Store) -> None:
    earlier_config, earlier_space = sweep(dataset={"kind": "digits", "train_per_class": 5})
    earlier = planned(earlier_config, earlier_space, store)
    adapt, targets = earlier.adapt["cnn"], next(iter(earlier.targets.values()))
    keep(store, adapt, costs.PROBE_S + 5.0)
    keep(store, targets, 50.0)
    found = expected(store)  # 3 instead of 5 images a class
    assert found.measured == ("adapt", "targets")
    assert found.seconds["targets"] == pytest.approx(30.0)
    assert found.seconds["adapt"] == pytest.approx(costs.PROBE_S + 3.0)
    assert "teachers and targets as measured before" in found.line()


@ON_CPU
def test_other_teachers_and_other_devices_say_nothing(store: Store) -> None:
    fresh = expected(store).seconds
    earlier_config, earlier_space = sweep(dataset={"kind": "digits", "train_per_class": 5})
    keep(store, planned(earlier_config, earlier_space, store).adapt["cnn"], 1e6, device="NVIDIA H100")
    other_config, other_space = sweep(
        teachers={"cnn": {**TEACHER, "model": "test_vit", "model_args": {"img_size": 32}}}
    )
    other = planned(other_config, other_space, store)
    keep(store, other.adapt["cnn"], 1e6)
    keep(store, next(iter(other.targets.values())), 1e6)
    found = expected(store)
    assert found.seconds == fresh
    assert not found.measured


@ON_CPU
def test_what_is_in_the_store_costs_nothing(store: Store) -> None:
    plan = planned(*sweep(), store)
    for item in plan.artifacts():
        if item.kind != "images":
            keep(store, item, 3.0)
    assert list(expected(store).seconds) == ["search", "finalists"]


@pytest.mark.parametrize(("attempts", "draws"), [(1, 1), (2, 1.5), (4, 1.875)])
def test_half_of_what_is_filtered_is_drawn_again(store: Store, attempts: int, draws: float) -> None:
    trial = {"synthetic": {"source": "ddpm", "ratio": {"choice": [0, 1]}}}

    def seconds(**more: Any) -> tuple[float, str]:
        ddpm = {"kind": "diffusers", "model": "zoo:generator", "steps": 5, "max_ratio": 1, **more}
        found = expected(store, trial=trial, synthetic={"ddpm": ddpm})
        (row,) = [row for row in found.rows if row.kind == "synthetic"]
        return row.seconds or 0.0, row.note

    plain, note = seconds()
    assert (plain > 0, note) == (True, "")
    judged, note = seconds(filter={"kind": "agreement", "teacher": "cnn", "max_attempts": attempts})
    assert judged == pytest.approx(draws * plain)
    assert note == ", if 50% pass the filter"


def test_a_pipeline_that_is_not_on_disk_is_not_known(store: Store) -> None:
    trial = {"synthetic": {"source": "sd", "ratio": {"choice": [0, 1]}}}
    synthetic = {"sd": {"kind": "diffusers", "model": "nobody/has-this-one", "prompt": "a {label}"}}
    found = expected(store, trial=trial, synthetic=synthetic)
    assert found.unknown == ("synthetic of sd",)
    assert "synthetic" not in found.seconds
    assert "not known: synthetic of sd" in found.line()


def made_up(*rows: forecast.Row, device: str = "NVIDIA A100-SXM4-80GB", **changes: Any) -> forecast.Forecast:
    slot = devices.slot(device, is_here=False)
    where = place.Place(slot, {"CPU": 17.0, "GPU": 17.0}, **changes)
    return forecast.Forecast(rows, where, 17)


def row(kind: str, seconds: float | None = 12345.6, **changes: Any) -> forecast.Row:
    values = {"name": kind, "samples": 5760, "unit": "views", "bytes": 5_230_080, "seconds": seconds, **changes}
    return forecast.Row(kind=kind, **values)


def test_the_line_of_the_header_has_durations_that_no_break_tears() -> None:
    known = [row(kind, basis=forecast.BEFORE) for kind in ("adapt", "synthetic", "targets")]
    lost = row("synthetic", None, name="long " * 20, basis=forecast.UNKNOWN)
    found = made_up(*known, row("search"), row("finalists"), lost)
    line = found.line()
    assert line.startswith("  forecast   17\xa0h\xa008\xa0min of device time: teachers 3\xa0h\xa025\xa0min, ")
    assert "on 17 lanes, counted at an assumed 20% of the peak in A100's data sheet, 19.5 TFLOP/s" in line


def test_lanes_are_told_of_this_machine_only(store: Store) -> None:
    config, space = sweep()
    plan = planned(config, space, store)
    places = (place.here(is_local=is_local) for is_local in (True, False))
    here, elsewhere = (forecast.forecast(plan, space, store, where) for where in places)
    assert here.lanes is not None
    trainings = here.seconds["search"] / here.lanes + here.seconds["finalists"]  # of those there is one alone
    stages = 3 * forecast.PASS_S + here.seconds["adapt"] + here.seconds["targets"]  # images, teachers, targets
    assert here.wall_s == pytest.approx(forecast.START_S + stages + trainings)
    assert elsewhere.wall_s is None
    assert "lane" not in elsewhere.line()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (place.Place(ONE, {"CPU": 2.0}, is_one=True), (0.1 + 2 * 1.1) / 2),
        (place.Place(ONE, {"CPU": 2.0, "GPU": 0.0}), 1.0),  # a cluster, whose head is another machine
        (place.Place(ONE, None), 1.0),
        (place.Place(devices.slot("Tesla T4", is_here=False), {"CPU": 2.0, "GPU": 2.0}, is_one=True), 1.0),
        (place.Place(ONE, {"CPU": 64.0}, is_one=True), 1.0),  # ten trials leave cores for all else
    ],
)
def test_a_training_shares_its_core_with_ray_where_lanes_leave_none_free(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: place.Place, expected: float
) -> None:
    config, space = sweep()
    plan = planned(config, space, store)
    own = forecast.forecast(plan, space, store, where).seconds
    monkeypatch.setattr(place, "DRIVER_CORES", 0.1)
    monkeypatch.setattr(place, "LANE_CORES", 0.1)
    assert where.crowding(config) == pytest.approx(expected)
    shared = forecast.forecast(plan, space, store, where).seconds
    ratios = {kind: shared[kind] / own[kind] for kind in own}
    assert ratios.pop("search") == pytest.approx(expected)
    assert ratios.pop("finalists") == pytest.approx(expected)
    assert set(ratios.values()) == {1.0}


def test_rows_of_an_anytime_front_are_not_all_trained_to_the_end(store: Store) -> None:
    whole = expected(store).seconds["finalists"]
    found = expected(store, search={"front": "anytime"}).seconds["finalists"]
    assert found == pytest.approx(whole * forecast.ANYTIME_SHARE)


def test_bytes_are_those_of_the_schemas(store: Store) -> None:
    config, space = sweep()
    plan = planned(config, space, store)
    found = {r.kind: r.bytes for r in forecast.forecast(plan, space, store).rows}
    width, num_classes = 96, 10  # of test_resnet's embedding
    assert teachers.sketch(teachers.Config.model_validate(TEACHER), NAMES).embedding_dim == width
    assert found["images"] == len(plan.index) * 32 * 32 * 3
    assert found["adapt"] == (width + 1) * num_classes * 4
    assert found["targets"] == 30 * 2 * (num_classes * 2 + 5 * 4 + 4)  # logits in fp16, the box and the view


def test_a_part_that_is_there_is_cached_and_costs_nothing(store: Store) -> None:
    config, space = sweep()
    plan = planned(config, space, store)
    keep(store, plan.adapt["cnn"], 3.0)
    found = {r.kind: r for r in forecast.forecast(plan, space, store).rows}
    assert (found["adapt"].basis, found["adapt"].seconds, found["adapt"].bytes) == (forecast.CACHED, 0.0, 0)
    assert found["targets"].basis == forecast.COUNTED


TASK_RECIPE = {"epochs": 8, "batch_size": 32, "epoch_size": 64}  # as `sweep` has it
POOL_RECIPE = {"epochs": 5, "batch_size": 16, "epoch_size": 96}


class TestPretraining:
    """A training before the training, on a pool whose images and targets have to be there."""

    def found(self, store: Store, pool: Any = "p", *, search: dict[str, Any] | None = None, **pretrain: Any) -> Any:
        section = {"pool": pool, "teacher": "cnn", "train": POOL_RECIPE, **pretrain}
        config, space = sweep(
            trial={"teacher": "none", "pretrain": section},
            search=search,
            pools={"p": {"kind": "digits_pool", "count": 40}},
        )
        dataset: Any = config.dataset
        settings: Any = config.pools["p"]
        pools = {"p": digits_pool.index(settings, 0)}
        plan = make_plan(config, space, digits.index(dataset, config.seed), store, pools)
        return forecast.forecast(plan, space, store)

    def whole(self, recipe: dict[str, int], num_images: int, num_val: int) -> float:
        """Seconds of one training, in closed form."""
        forward = student.flops_an_image(StudentConfig(model="test_efficientnet"), 10, 32)
        assert forward is not None
        steps = round(recipe.get("epoch_size", num_images) / recipe["batch_size"])  # as `train.Trainer` has it
        work = forward * (costs.BACKWARD_FACTOR * steps * recipe["batch_size"] + num_val)
        batches = steps + num_val / costs.EVALUATION_BATCH
        return recipe["epochs"] * (work / devices.RATE_CPU_FLOPS + batches * costs.BATCH_S)

    @ON_CPU
    def test_is_counted_beside_the_task_and_validates_nothing(self, store: Store) -> None:
        task, first = self.whole(TASK_RECIPE, 30, 200), self.whole(POOL_RECIPE, 40, 0)
        found = self.found(store)
        assert found.seconds["finalists"] == pytest.approx(task + first)
        assert found.seconds["search"] == pytest.approx(10 * (task + first))
        assert self.found(store, "none").seconds["finalists"] == pytest.approx(task)
        assert self.found(store, {"choice": ["none", "p"]}).seconds["finalists"] == pytest.approx(task + first / 2)

    @ON_CPU
    def test_an_epoch_without_a_size_is_a_pass_over_the_pool(self, store: Store) -> None:
        recipe = {"epochs": 3, "batch_size": 16}
        expected = self.whole(TASK_RECIPE, 30, 200) + self.whole(recipe, 40, 0)
        assert self.found(store, train=recipe).seconds["finalists"] == pytest.approx(expected)

    @ON_CPU
    def test_targets_are_those_of_the_pool(self, store: Store) -> None:
        """40 images of the pool where the task's 30 are taught in the other sweep, by the same teacher."""
        found = self.found(store)
        assert list(found.seconds) == ["adapt", "targets", "search", "finalists"]
        assert not found.unknown
        assert found.seconds["targets"] == pytest.approx(expected(store).seconds["targets"] * 40 / 30)

    @ON_CPU
    def test_a_scheduler_stops_the_task_alone(self, store: Store) -> None:
        scheduler = {"kind": "asha", "grace": 2, "reduction": 2}
        task, first = self.whole(TASK_RECIPE, 30, 200), self.whole(POOL_RECIPE, 40, 0)
        found = self.found(store, search={"scheduler": scheduler})
        share = asha.expected_share(asha.Config(grace=2, reduction=2), 8, 10)
        assert found.seconds["search"] == pytest.approx(10 * (first + share * task))

    @ON_CPU
    def test_a_teacher_in_the_loop_of_the_pool_is_counted(self, store: Store) -> None:
        cached = self.found(store).seconds["finalists"]
        assert self.found(store, loss={"embedding": {"kind": "at"}}).seconds["finalists"] > cached
