"""The mailbox: jobs in order, none lost and none trained twice at once, whatever dies and whenever it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from sweeper.mailbox import MAX_DEATHS, Mailbox

TURNS = 20  # of the event loop: enough for everything that is ready to happen to have happened


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test; a test that waits for something that never comes fails after 10 s."""

    @wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), timeout=10))

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


async def settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def waiting(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A call that has begun and has nothing to return yet."""
    task = asyncio.create_task(coroutine)
    await settle()
    assert not task.done()
    return task


async def hired(mailbox: Mailbox, lane: str = "a", *jobs: str) -> int:
    """A lane that is there, and jobs for it."""
    incarnation = await mailbox.enlist(lane, 1)
    for job in jobs:
        await mailbox.submit(job, f"job {job}")
    return incarnation


async def goes_on(mailbox: Mailbox, lane: str, job: str, epoch: int) -> bool:
    """As a lane's worker does after an epoch: report it, and look whether the job should stop."""
    await mailbox.report(lane, job, done(epoch))
    stopping = asyncio.create_task(mailbox.stopping(job))
    await settle()
    return not stopping.done()


def done(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": 9, "accuracy_val": 0.5, **more}


@in_loop
async def test_jobs_are_taken_in_order_once_each(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    first, second = await mailbox.enlist("a", 1), await mailbox.enlist("b", 2)
    for name in ("x", "y", "z"):
        await mailbox.submit(name, name.upper())
    assert await mailbox.take("a", first) == ("x", "X")
    assert await mailbox.take("b", second) == ("y", "Y")
    await mailbox.finish("a", "x", {"state": "completed"})
    assert await mailbox.take("a", first) == ("z", "Z")


@in_loop
async def test_one_job_wakes_one_of_the_waiting_lanes(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    tasks = [await waiting(mailbox.take(lane, await mailbox.enlist(lane, 1))) for lane in ("a", "b")]
    await mailbox.submit("x", "X")
    await settle()
    assert sorted(task.done() for task in tasks) == [False, True]
    await mailbox.submit("y", "Y")
    assert sorted(await asyncio.gather(*tasks)) == [("x", "X"), ("y", "Y")]


@in_loop
async def test_reports_and_the_end_reach_the_asker_in_order(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x")
    asking = await waiting(mailbox.next_message("x"))
    ended = await waiting(mailbox.ended("x"))
    await mailbox.take("a", incarnation)
    assert await goes_on(mailbox, "a", "x", 1)
    assert await goes_on(mailbox, "a", "x", 2)
    await mailbox.finish("a", "x", {"state": "completed", "params": 7, "model": {"f": b"weights"}})
    messages = [await asking, await mailbox.next_message("x"), await mailbox.next_message("x")]
    assert [m["type"] for m in messages] == ["report", "report", "end"]
    assert [m["epoch"] for m in messages[:2]] == [1, 2]
    assert messages[2] == {
        "type": "end",
        "lane": "a",
        "job": "x",
        "error": None,
        "state": "completed",
        "params": 7,
        "model": {"f": b"weights"},
    }
    await ended
    await mailbox.ended("x")
    events = await mailbox.events_since(0)
    assert [e["type"] for e in events] == ["lane", "start", "report", "report", "end"]
    assert "model" not in events[-1], "the view has no use for megabytes of weights"
    assert await mailbox.events_since(3) == events[3:]


@in_loop
async def test_a_dead_lanes_worker_gets_its_job_and_its_checkpoint_back(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    first = await hired(mailbox, "a", "x", "y")
    await mailbox.take("a", first)
    assert await mailbox.load("x") is None
    await mailbox.save("x", b"one")
    await mailbox.save("x", b"two")
    second = await mailbox.enlist("a", 2)
    assert second == first + 1
    assert await mailbox.take("a", second) == ("x", "job x")
    assert await mailbox.load("x") == b"two"
    assert await mailbox.load("y") is None
    await mailbox.finish("a", "x", {"state": "completed"})
    assert await mailbox.load("x") is None, "a job that has ended leaves nothing behind"
    assert list(folder.iterdir()) == []
    assert await mailbox.take("a", second) == ("y", "job y")


@in_loop
async def test_a_job_that_keeps_killing_its_worker_fails(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    await mailbox.take("a", await hired(mailbox, "a", "bad", "good"))
    await mailbox.save("bad", b"state")
    for _ in range(MAX_DEATHS):
        assert await mailbox.take("a", await mailbox.enlist("a", 1)) == ("bad", "job bad")
    assert await mailbox.take("a", await mailbox.enlist("a", 1)) == ("good", "job good")
    message = await mailbox.next_message("bad")
    assert (message["type"], message["state"]) == ("end", "failed")
    assert message["error"] == "its worker died 4 times in a row"
    assert await mailbox.load("bad") is None


@in_loop
async def test_an_epoch_between_deaths_forgives_them(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x")
    await mailbox.take("a", incarnation)
    for epoch in range(3 * MAX_DEATHS):
        assert await mailbox.take("a", await mailbox.enlist("a", 1)) == ("x", "job x")
        await mailbox.report("a", "x", done(epoch))


@in_loop
async def test_a_checkpoint_between_deaths_forgives_them_too(folder: Path) -> None:
    """A pre-training has no reports, and may be longer than a spot machine lives."""
    mailbox = Mailbox(str(folder))
    await mailbox.take("a", await hired(mailbox, "a", "x"))
    for epoch in range(3 * MAX_DEATHS):
        assert await mailbox.take("a", await mailbox.enlist("a", 1)) == ("x", "job x")
        await mailbox.save("x", bytes([epoch]))


@in_loop
async def test_a_dead_incarnations_take_steals_nothing(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    old = await mailbox.enlist("a", 1)
    orphan = await waiting(mailbox.take("a", old))
    new = await mailbox.enlist("a", 2)
    assert await orphan is None
    await mailbox.submit("x", "X")
    assert await mailbox.take("a", old) is None, "a call that comes late: the job stays in the queue"
    assert await mailbox.take("a", new) == ("x", "X")
    assert await mailbox.take("a", old) is None, "nor is a held job the old one's, or a death"
    assert mailbox.deaths == {}
    await mailbox.finish("a", "x", {"state": "completed"})
    assert (await mailbox.next_message("x"))["state"] == "completed"


@in_loop
async def test_only_the_holder_can_finish_a_job(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    await mailbox.take("a", await hired(mailbox, "a", "x", "y"))
    await mailbox.finish("b", "x", {"state": "failed"})
    await mailbox.finish("a", "y", {"state": "failed"})
    assert mailbox.jobs.keys() == {"x", "y"}
    await mailbox.finish("a", "x", {"state": "completed"})
    await mailbox.finish("a", "x", {"state": "failed"})
    assert (await mailbox.next_message("x"))["state"] == "completed"
    await waiting(mailbox.next_message("x"))


@in_loop
async def test_cancel_stops_a_running_job_at_its_next_epoch(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x", "y")
    await mailbox.take("a", incarnation)
    assert await goes_on(mailbox, "a", "x", 1)
    await mailbox.cancel("x")
    assert not await goes_on(mailbox, "a", "x", 2)
    await mailbox.finish("a", "x", {"state": "stopped", "epochs": 2})
    await mailbox.ended("x")
    assert [e["state"] for e in mailbox.events if e["type"] == "end"] == ["stopped"]
    await mailbox.take("a", incarnation)
    assert await goes_on(mailbox, "a", "y", 1), "a cancelled job says nothing about the next one"
    await mailbox.cancel("x")
    assert set(mailbox.stops) == {"y"}, "it had ended: nothing to remember"


@in_loop
async def test_a_job_that_is_cancelled_in_the_queue_still_has_an_end(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x")
    await mailbox.cancel("x")
    assert await mailbox.take("a", incarnation) == ("x", "job x")
    assert not await goes_on(mailbox, "a", "x", 1)


@in_loop
async def test_close_drains_the_queue_and_sends_lanes_home(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x", "y")
    await mailbox.take("a", incarnation)
    await mailbox.close()
    assert await goes_on(mailbox, "a", "x", 1), "a running job is finished"
    await mailbox.finish("a", "x", {"state": "completed"})
    assert await mailbox.take("a", incarnation) == ("y", "job y")
    await mailbox.finish("a", "y", {"state": "completed"})
    assert await mailbox.take("a", incarnation) is None


@in_loop
async def test_close_wakes_a_lane_that_waits(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    idle = await waiting(mailbox.take("a", await mailbox.enlist("a", 1)))
    await mailbox.close()
    assert await idle is None


@in_loop
async def test_abort_keeps_the_checkpoint_and_ends_the_lane(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x", "y")
    await mailbox.take("a", incarnation)
    await mailbox.save("x", b"state")
    await mailbox.close(abort=True)
    assert not await goes_on(mailbox, "a", "x", 1)
    await mailbox.finish("a", "x", {"state": "stopped"})
    assert not [e for e in mailbox.events if e["type"] == "end"], "the next run trains it to its end"
    assert await mailbox.take("a", incarnation) is None, "neither the same job again nor the next one"
    assert await Mailbox(str(folder)).load("x") == b"state"


@in_loop
async def test_abort_does_not_hide_how_a_job_ended(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x")
    await mailbox.take("a", incarnation)
    await mailbox.close(abort=True)
    await mailbox.finish("a", "x", {"state": "completed"})
    assert (await mailbox.next_message("x"))["state"] == "completed"
    assert await mailbox.take("a", incarnation) is None


@in_loop
async def test_a_worker_that_comes_back_during_an_abort_goes_home(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    await mailbox.take("a", await hired(mailbox, "a", "x"))
    await mailbox.save("x", b"state")
    await mailbox.close(abort=True)
    assert await mailbox.take("a", await mailbox.enlist("a", 2)) is None
    assert await mailbox.load("x") == b"state"


@in_loop
async def test_give_up_wakes_everyone(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "x", "y")
    await mailbox.take("a", incarnation)
    await mailbox.save("x", b"state")
    asking = [await waiting(mailbox.next_message(job)) for job in ("x", "y")]
    ends = [await waiting(mailbox.ended(job)) for job in ("x", "y")]
    await mailbox.give_up()
    assert await asyncio.gather(*asking) == [{"type": "lost"}] * 2
    await asyncio.gather(*ends)
    assert await mailbox.take("a", await mailbox.enlist("a", 2)) is None
    assert await mailbox.load("x") == b"state", "the next run goes on from it"


@in_loop
async def test_a_checkpoint_is_replaced_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox(str(folder))
    await mailbox.save("trial-00001", b"old")

    def dies(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", dies)
    with pytest.raises(OSError, match="no space"):
        await mailbox.save("trial-00001", b"new")
    assert await mailbox.load("trial-00001") == b"old"


@in_loop
async def test_a_search_that_ends_stops_what_runs_and_takes_back_what_waits(folder: Path) -> None:
    mailbox = Mailbox(str(folder))
    incarnation = await hired(mailbox, "a", "one", "two")
    assert await mailbox.take("a", incarnation) == ("one", "job one")
    await mailbox.stop_all()
    assert (await mailbox.next_message("two"))["state"] == "withdrawn"
    assert not await goes_on(mailbox, "a", "one", 1)
    await mailbox.finish("a", "one", {"state": "stopped"})
    assert (await mailbox.next_message("one"))["type"] == "report"
    assert (await mailbox.next_message("one"))["state"] == "stopped"
    await waiting(mailbox.take("a", incarnation))
    times = [event["time"] for event in mailbox.events]
    assert times == sorted(times), "events say when they happened"


@pytest.mark.parametrize("lost", [["there"], ["there", "here"], ["here", "there"]])
@in_loop
async def test_the_job_of_a_lane_that_lost_a_node_goes_to_the_next_free_one(folder: Path, lost: list[str]) -> None:
    """Whichever of its workers was there: the others wait for that one, and can say nothing of the job any more."""
    mailbox = Mailbox(str(folder))
    here, there = await mailbox.enlist("a", 1, ["here"]), await mailbox.enlist("b", 2, lost)
    for job in ("x", "y", "z"):
        await mailbox.submit(job, f"job {job}")
    await mailbox.take("a", here)
    await mailbox.take("b", there)
    await mailbox.save("y", b"state")
    await mailbox.keep({"here", "new"})
    await mailbox.finish("b", "y", {"state": "completed"})
    assert await mailbox.take("b", there) is None, "what it says is late"
    await mailbox.finish("a", "x", {"state": "completed"})
    assert await mailbox.take("a", here) == ("y", "job y"), "before those that never began"
    assert await mailbox.load("y") == b"state"
    again = await mailbox.enlist("b", 3, ["new", "here"])
    assert await mailbox.take("b", again) == ("z", "job z")
    await mailbox.keep({"here", "new"})
    assert set(mailbox.held.values()) == {"y", "z"}
    ends = [event["job"] for event in mailbox.events if event["type"] == "end"]
    assert ends == ["x"]
