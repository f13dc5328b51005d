"""What a lane does to a trial, and what a trial does to a lane."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
from broken_losses import Config as Broken
from broken_losses import How, known
from command_line import wait_until
from lane_messages import PATIENCE_S, Impatient, events, follow
from samples import MemorySlot
from small_sweep import Built

from sweeper import lane, train
from sweeper.config import ResourceConfig
from sweeper.data_cache import DataCache
from sweeper.errors import RunFailed
from sweeper.lane import LanePool
from sweeper.slots import LanePlan, plan_lanes
from sweeper.trial import TrialConfig
from sweeper.worker import Job, reason_of

if TYPE_CHECKING:
    from lane_messages import Messages


@pytest.fixture(scope="module", autouse=True)
def broken_is_known() -> Iterator[None]:
    with known():
        yield


def trial(**changes: Any) -> dict[str, Any]:
    """A distilled trial of a few epochs with every kind of random state: dropout, projectors, an order, views."""
    base: dict[str, Any] = {
        "teacher": "cnn",
        "student": {"model": "test_efficientnet", "model_args": {"drop_rate": 0.2}},
        "loss": {"ce": 0.5, "kl": {"weight": 1.0}, "embedding": {"kind": "info_nce", "weight": 0.5}},
        "train": {"epochs": 3, "batch_size": 16, "epoch_size": 48, "lr": 3e-3},
    }
    return {**base, **changes}


def metrics(messages: Messages) -> list[tuple[Any, ...]]:
    """What a trial reported that does not depend on the clock."""
    reports = [(m["epoch"], m["accuracy_val"], m["loss"]) for m in messages if m["type"] == "report"]
    end = messages[-1]
    return [*reports, (end["state"], end["epochs"], end["accuracy_val"], end["accuracy_test"], end["params"])]


# ------------------------------------------------------------------------------------------------- one trial


def test_a_trial_leaves_nothing_behind(pool: LanePool, built: Built) -> None:
    """The same trial first and last, others between: every figure and every weight is bit by bit the same."""
    jobs = {
        "first": built.job(trial(), final=True),
        "other student": built.job(trial(teacher="vit", student={"model": "test_vit"}), seed=7),
        "fails": built.job(trial(loss={"embedding": Broken(how="raise", after=2)}), seed=3),
        "synthetic": built.job(trial(synthetic={"source": "tiny", "ratio": 1}), seed=5),
        "last": built.job(trial(), final=True),
    }
    for name, job in jobs.items():
        pool.submit(name, job)
    ended = {name: follow(pool, name) for name in jobs}
    assert [messages[-1]["state"] for messages in ended.values()] == [
        "completed", "completed", "failed", "completed", "completed",
    ]  # fmt: skip
    assert metrics(ended["first"]) == metrics(ended["last"])
    assert metrics(ended["first"]) != metrics(ended["synthetic"])
    assert ended["first"][-1]["model"] == ended["last"][-1]["model"] != {}
    alone = trained_here(built, jobs["first"])
    assert [report[1:3] for report in metrics(ended["first"])[:-1]] == [(r.accuracy_val, r.loss) for r in alone]


def trained_here(built: Built, job: Job) -> list[train.EpochReport]:
    """The reports of the plain loop in this process, without Ray and without a lane."""
    config = TrialConfig.model_validate(job.config)
    data = DataCache(built.store).trial_data(
        job.refs, needs=config.needs, view_config=job.views, view_seed=job.view_seed, with_test=False
    )
    reports: list[train.EpochReport] = []

    class Nowhere(MemorySlot):
        def save(self, state: bytes) -> None:
            raise AssertionError("too short for a checkpoint")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train.fit(
            config,
            data,
            seed=job.seed,
            device=torch.device("cpu"),
            report=lambda report: reports.append(report) is None,
            slot=Nowhere(),
            keep_model=False,
        )
    finally:
        torch.set_num_threads(threads)
    return reports


def test_a_finalist_sends_its_model_and_its_test_accuracy_home(pool: LanePool, built: Built) -> None:
    pool.submit("searched", built.job(trial()))
    pool.submit("final", built.job(trial(), final=True))
    searched, final = follow(pool, "searched")[-1], follow(pool, "final")[-1]
    assert (searched["model"], searched["accuracy_test"]) == ({}, None)
    assert set(final["model"]) == {"config.json", "model.safetensors"}
    assert 0 <= final["accuracy_test"] <= 1
    assert final["accuracy_val"] == searched["accuracy_val"]
    assert all("model" not in event for event in events(pool))  # the search reads all events again and again


def test_a_trial_that_is_cancelled_ends_at_its_next_epoch(pool: LanePool, built: Built) -> None:
    pool.submit("long", built.job(trial(train={"epochs": 5000, "batch_size": 16, "epoch_size": 48})))
    assert ray.get(pool.mailbox.next_message.remote("long"), timeout=PATIENCE_S)["epoch"] == 1
    ray.get(pool.mailbox.cancel.remote("long"))
    ray.get(pool.mailbox.ended.remote("long"), timeout=PATIENCE_S)
    end = next(event for event in events(pool) if event["type"] == "end" and event["job"] == "long")
    last = [event for event in events(pool) if event["type"] == "report" and event["job"] == "long"][-1]
    assert end["state"] == "stopped"
    assert end["error"] is None
    assert end["epochs"] == last["epoch"] < 5000
    assert end["train_seconds"] == last["train_seconds"] > 0


# ------------------------------------------------------------------------------------------------- trials that fail


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: three lines of reason (broken_losses.py:"),
        ("memory", "TrialFailed: out of memory, with the batch in halves too: CUDA out of memory. Tried to allocate 2"),
        ("nan", "TrialFailed: the loss became nan in epoch 2 of 3 (train.py:"),
    ],
)
def test_a_trial_that_fails_leaves_its_lane_warm(pool: LanePool, built: Built, how: How, reason: str) -> None:
    pool.submit(f"bad {how}", built.job(trial(loss={"embedding": Broken(how=how, after=3)})))
    pool.submit(f"next {how}", built.job(trial()))
    ended = follow(pool, f"bad {how}")

    def has_started() -> bool:
        return ("start", f"next {how}") in [(event["type"], event.get("job")) for event in events(pool)]

    wait_until(has_started, patience_s=1.0)  # the bound; a new worker takes several
    assert [m["epoch"] for m in ended[:-1]] == [1]
    assert ended[-1]["state"] == "failed"
    assert ended[-1]["train_seconds"] >= ended[-2]["train_seconds"] > 0, "the epoch that failed is paid for too"
    assert ended[-1]["error"].startswith(reason)
    assert "\n" not in ended[-1]["error"]
    assert follow(pool, f"next {how}")[-1]["state"] == "completed"
    assert not list((pool.work / "checkpoints").iterdir())


def test_a_configuration_that_can_not_be_built_fails_alone(pool: LanePool, built: Built) -> None:
    pool.submit("no model", built.job(trial(student={"model": "no_such_model"})))
    (end,) = follow(pool, "no model")
    assert end["state"] == "failed"
    assert "no_such_model" in end["error"]
    lost = built.job(trial())
    pool.submit("no data", replace(lost, refs=replace(lost.refs, images="0" * 64)))
    (end,) = follow(pool, "no data")
    assert end["error"].startswith("artifact 000000000000 is not in ")
    assert end["is_fatal"], "no other trial would fare better"


# ------------------------------------------------------------------------------------------------- workers that die


def last_worker(pool: LanePool) -> Mapping[str, Any]:
    return [event for event in events(pool) if event["type"] == "lane"][-1]


def test_a_killed_worker_costs_the_epochs_since_the_last_checkpoint(pool: LanePool, built: Built) -> None:
    recipe = {"epochs": 16, "batch_size": 32, "epoch_size": 768, "lr": 3e-3}
    long = built.job(trial(train=recipe), final=True)
    long = replace(long, config=Impatient(long.config))
    pool.submit("killed", long)
    checkpoint = pool.work / "checkpoints" / "killed.pt"
    wait_until(checkpoint.exists, PATIENCE_S)
    worker = last_worker(pool)
    os.kill(worker["pid"], signal.SIGKILL)
    killed = follow(pool, "killed")
    after = last_worker(pool)
    assert after["incarnation"] == worker["incarnation"] + 1
    assert after["pid"] != worker["pid"]
    pool.submit("undisturbed", long)
    undisturbed = follow(pool, "undisturbed")

    epochs = [m["epoch"] for m in killed[:-1]]
    assert epochs.count(1) == 1, "it began from nothing"
    assert sorted(set(epochs)) == list(range(1, 17))
    by_epoch = {m["epoch"]: m for m in undisturbed[:-1]}
    for report in killed[:-1]:  # also those of epochs that were trained twice
        same = by_epoch[report["epoch"]]
        assert (report["accuracy_val"], report["loss"]) == (same["accuracy_val"], same["loss"])
    assert metrics(killed)[-1] == metrics(undisturbed)[-1]
    assert killed[-1]["model"] == undisturbed[-1]["model"]
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_job_or_of_nobody_is_left_alone(pool: LanePool, built: Built) -> None:
    """As it lies there where somebody took the run's journal away and the numbers begin again."""
    job = built.job(trial())
    other = replace(job, seed=job.seed + 1)
    assert job.identity != other.identity
    for name, kept in (("anothers", other.identity.encode() + b"state"), ("nobodys", job.identity.encode() + b"state")):
        ray.get(pool.mailbox.save.remote(name, kept))
        pool.submit(name, job)
        assert [m.get("epoch") for m in follow(pool, name)[:-1]] == [1, 2, 3]


@pytest.mark.slow  # five workers
def test_a_job_that_keeps_killing_its_worker_is_failed(pool: LanePool, built: Built) -> None:
    pool.submit("poison", built.job(trial(loss={"embedding": Broken(how="die")})))
    pool.submit("good", built.job(trial()))
    (end,) = follow(pool, "poison")
    assert (end["state"], end["error"]) == ("failed", "its worker died 4 times in a row")
    assert follow(pool, "good")[-1]["state"] == "completed"


def test_a_lane_of_two_workers_trains_as_one_does(built: Built, tmp_path: Path) -> None:
    """DDP over gloo: each worker takes half of each batch, and their mean gradient is that of the whole batch.

    The student has no batch statistics, which would differ between half a batch and a whole one.
    """
    recipe = {"epochs": 4, "batch_size": 16, "epoch_size": 80, "lr": 3e-3}
    job = built.job(trial(student={"model": "test_vit"}, loss={"ce": 0.5, "kl": {"weight": 1.0}}, train=recipe))
    with LanePool(LanePlan(1, 2, 1, 0.0), built.store.uri, tmp_path) as two:
        two.submit("together", job)
        together = follow(two, "together")
        nodes = last_worker(two)["nodes"]
    alone = trained_here(built, job)
    assert together[-1]["state"] == "completed"
    assert [m["epoch"] for m in together[:-1]] == [1, 2, 3, 4]
    for message, report in zip(together[:-1], alone, strict=True):
        assert abs(message["accuracy_val"] - report.accuracy_val) <= 0.02
    assert together[-1]["train_seconds"] > 0
    here = ray.get_runtime_context().get_node_id()
    assert nodes == [here, here], "the mailbox has to know of each worker's node whether it is lost"


@pytest.mark.slow  # a second group of workers
def test_a_trial_that_fails_on_two_workers_is_failed_and_they_come_back(built: Built, tmp_path: Path) -> None:
    """The other worker waits in a collective call, so that the group has to be started again."""
    with LanePool(LanePlan(1, 2, 1, 0.0), built.store.uri, tmp_path) as two:
        two.submit("fails", built.job(trial(loss={"embedding": Broken(how="raise", after=1)})))
        two.submit("next", built.job(trial()))
        fails, after = follow(two, "fails"), follow(two, "next")
    assert fails[-1]["state"] == "failed"
    assert fails[-1]["error"].startswith("ValueError: three lines of reason")
    assert after[-1]["state"] == "completed"


# ------------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize(
    ("resources", "totals", "most", "expected"),
    [
        ({}, {"CPU": 2}, 10, "2 of 1 CPU"),
        ({}, {"CPU": 8, "GPU": 2}, 10, "2 of 1 CPU and 1 GPU"),
        ({"gpus_per_trial": 0.25}, {"CPU": 8, "GPU": 2}, 10, "8 of 1 CPU and 0.25 GPU"),
        ({"gpus_per_trial": 0.25}, {"CPU": 3, "GPU": 2}, 10, "3 of 1 CPU and 0.25 GPU"),
        ({"workers_per_trial": 2, "cpus_per_trial": 2}, {"CPU": 9}, 10, "2 of 2 x (2 CPU)"),
        ({"workers_per_trial": 4}, {"CPU": 2}, 10, "1 of 4 x (1 CPU)"),
        ({}, {"CPU": 64}, 3, "3 of 1 CPU"),
        ({"gpus_per_trial": 0}, {"CPU": 4, "GPU": 1}, 10, "4 of 1 CPU"),
        ({}, {"CPU": 64, "memory": 11.2e9}, 100, "7 of 1 CPU"),
        ({"workers_per_trial": 2}, {"CPU": 64, "memory": 11.2e9}, 100, "4 of 2 x (1 CPU)"),
        ({}, {"CPU": 2, "memory": 1e9}, 10, "1 of 1 CPU"),
    ],
)
def test_lanes_fit_the_cluster(resources: dict[str, Any], totals: dict[str, float], most: int, expected: str) -> None:
    plan = plan_lanes(ResourceConfig(**resources), totals, most)
    assert f"{plan.num_lanes} of {plan.each}" == expected


def test_reason_names_the_error_and_its_place() -> None:
    try:
        raise RuntimeError("a\n  b" + "x" * 1000)
    except RuntimeError as error:
        reason = reason_of(error)
    assert reason.startswith("RuntimeError: a bxxx")
    assert "(test_lane.py:" in reason
    assert len(reason) < 350
    assert reason_of(KeyError("k")) == "KeyError: 'k'"


def test_losing_every_lane_is_said(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, number: int) -> None:
            self.number = number

        def fit(self) -> None:
            raise ValueError(f"lane {self.number}")

    pool = LanePool(LanePlan(2, 1, 1, 0.0), built.store.uri, tmp_path)
    monkeypatch.setattr(pool, "_trainer", Broken)
    pool.submit("waits", None)  # type: ignore[arg-type]
    pool.start()
    wait_until(lambda: pool.lost, PATIENCE_S)
    assert ray.get(pool.mailbox.next_message.remote("waits"), timeout=PATIENCE_S) == {"type": "lost"}
    with pytest.raises(RunFailed, match=r"no lane is left; the last one ended with ValueError: lane [01]"):
        pool.check()
    pool.close()


def test_a_lane_that_no_node_has_room_for_ends_with_the_others(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would outlive Ray's session, which then may end the whole process without a word."""
    monkeypatch.setattr(lane, "CLOSE_TIMEOUT_S", 3.0)
    with LanePool(LanePlan(1, 1, 1000, 0.0), "", tmp_path) as pool:
        wait_until(lambda: ray.get(pool.mailbox.list_controllers.remote()), PATIENCE_S)
        (thread,) = pool.threads.values()
    assert not thread.is_alive()


@pytest.mark.slow  # a lane, and another one
def test_a_lane_whose_controller_dies_gives_its_room_back(built: Built, tmp_path: Path) -> None:
    """There is room for one such lane: the next one, which goes on with the trial, waits for that of the first."""
    with LanePool(LanePlan(2, 1, 2, 0.0, is_elastic=True), built.store.uri, tmp_path) as lanes:
        lanes.submit("orphan", built.job(trial(train={"epochs": 20, "batch_size": 16, "epoch_size": 384})))
        assert ray.get(lanes.mailbox.next_message.remote("orphan"), timeout=PATIENCE_S)["epoch"] == 1
        (controller,) = ray.get(lanes.mailbox.list_controllers.remote())
        ray.kill(controller)
        assert follow(lanes, "orphan")[-1]["state"] == "completed"
        assert [event["incarnation"] for event in events(lanes) if event["type"] == "lane"] == [1, 2]
        assert len(lanes.errors) == 1
