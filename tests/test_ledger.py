"""Device-seconds are measured, charged alone and charged amortised; nothing is lost and nothing charged twice."""

from __future__ import annotations

import contextlib
import math
import random
import time

import pytest
import torch

from sweeper.ledger import ArtifactUse, Charge, Cost, DeviceTimer, amortize, device_name


def test_a_row_alone_pays_for_what_it_used() -> None:
    cost = Cost.alone(
        7200.0,
        {
            "t": ArtifactUse("adapt", 3600.0, 1.0),
            "c": ArtifactUse("targets", 100.0, 1.0),
            "d": ArtifactUse("targets", 200.0, 0.25),  # targets of a quarter of the synthetic images
            "s": ArtifactUse("synthetic", 400.0, 0.25),
        },
    )
    assert cost == Cost(adapt=3600.0, targets=150.0, synthetic=100.0, train=7200.0)
    assert cost.total == 11050.0


def test_columns_are_those_of_the_table_and_sum_up() -> None:
    hours = Cost(adapt=360.0, targets=36.0, synthetic=720.0, train=7200.0).as_hours()
    assert list(hours) == [
        "gpu_hours",
        "gpu_hours_adapt",
        "gpu_hours_targets",
        "gpu_hours_synthetic",
        "gpu_hours_train",
    ]
    assert hours["gpu_hours_adapt"] == pytest.approx(0.1)
    assert hours["gpu_hours_train"] == 2.0
    assert hours["gpu_hours"] == sum(value for name, value in hours.items() if name != "gpu_hours")


def test_costs_add() -> None:
    assert Cost(1, 2, 3, 4) + Cost(adapt=10, train=20) == Cost(11, 2, 3, 24)


def test_amortized_splits_by_use() -> None:
    shared = ArtifactUse("adapt", 3600.0, 1.0)
    rows = [
        (0.0, {"t": shared, "s": ArtifactUse("synthetic", 7200.0, 0.25)}),
        (3600.0, {"t": shared, "s": ArtifactUse("synthetic", 7200.0, 0.5)}),
        (1800.0, {}),
    ]
    assert amortize(rows) == pytest.approx([0.5 + 2 / 3, 1 + 0.5 + 4 / 3, 0.5])


def test_one_trial_pays_for_the_whole_of_what_it_used_in_part() -> None:
    assert amortize([(0.0, {"s": ArtifactUse("synthetic", 7200.0, 0.1)})]) == pytest.approx([2.0])
    assert amortize([(0.0, {"s": ArtifactUse("synthetic", 7200.0, 0.0)})]) == [0.0]
    assert amortize([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_amortized_sums_to_what_was_spent(seed: int) -> None:
    draw = random.Random(seed)
    artifacts = {
        f"a{number}": (draw.choice(["adapt", "targets", "synthetic"]), draw.uniform(0, 10) ** 4)
        for number in range(draw.randint(1, 8))
    }
    rows = []
    for _ in range(draw.randint(1, 30)):
        used = draw.sample(sorted(artifacts), draw.randint(0, len(artifacts)))
        shares = {key: draw.choice([0.0, 1e-9, 0.25, 0.5, draw.random(), 1.0]) for key in used}
        rows.append((draw.expovariate(0.01), {k: ArtifactUse(*artifacts[k], share) for k, share in shares.items()}))
    paid_for = {key for _, uses in rows for key, use in uses.items() if use.share > 0}
    spent = sum(seconds for seconds, _ in rows) + sum(artifacts[key][1] for key in paid_for)
    amortized = amortize(rows)
    assert math.fsum(amortized) * 3600 == pytest.approx(spent, rel=1e-12)
    assert all(hours * 3600 >= seconds * (1 - 1e-12) for hours, (seconds, _) in zip(amortized, rows, strict=True))


@pytest.mark.parametrize(
    ("seconds", "use", "message"),
    [
        (-1.0, ArtifactUse("adapt", 1.0, 1.0), "train"),
        (float("nan"), ArtifactUse("adapt", 1.0, 1.0), "train"),
        (1.0, ArtifactUse("images", 1.0, 1.0), "stage 'images'"),
        (1.0, ArtifactUse("train", 1.0, 1.0), "stage 'train'"),
        (1.0, ArtifactUse("adapt", -1.0, 1.0), "device-seconds"),
        (1.0, ArtifactUse("adapt", float("inf"), 1.0), "device-seconds"),
        (1.0, ArtifactUse("adapt", 1.0, 1.5), "share"),
        (1.0, ArtifactUse("adapt", 1.0, float("nan")), "share"),
    ],
)
def test_impossible_figures_are_refused(seconds: float, use: ArtifactUse, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cost.alone(seconds, {"a": use})
    with pytest.raises(ValueError, match=message):
        amortize([(seconds, {"a": use})])


def test_rows_that_differ_about_an_artifact_are_refused() -> None:
    with pytest.raises(ValueError, match="artifact a: one row says"):
        amortize([(0.0, {"a": ArtifactUse("adapt", 1.0, 1.0)}), (0.0, {"a": ArtifactUse("adapt", 2.0, 1.0)})])


def test_a_charge_is_plain_data() -> None:
    charge = Charge(stage="train", key="t1", seconds=1.5, device="cpu", units=10)
    assert charge == Charge(**vars(charge))


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_timer_counts_its_blocks_even_those_that_raise(device: torch.device | str) -> None:
    timer = DeviceTimer(device)
    begun = time.perf_counter()
    with timer:
        sum(range(200_000))
    first = timer.seconds
    with contextlib.suppress(KeyError), timer:
        raise KeyError(sum(range(200_000)))
    assert 0 < first < timer.seconds <= time.perf_counter() - begun
    assert device_name(device) == "cpu"


def test_timer_synchronises_an_accelerator_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: seen.append(str(device)))
    with DeviceTimer(torch.device("cuda:1")):
        assert seen == ["cuda:1"]
    assert seen == ["cuda:1", "cuda:1"]


@pytest.mark.gpu
def test_timer_waits_for_queued_kernels() -> None:
    matrix = torch.randn(8192, 8192, device="cuda")
    (matrix @ matrix).sum().item()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with DeviceTimer("cuda") as timer:
        start.record()
        for _ in range(20):
            matrix = matrix @ matrix / 8192
        end.record()
    assert timer.seconds >= start.elapsed_time(end) / 1000
    assert device_name("cuda") == torch.cuda.get_device_name()
