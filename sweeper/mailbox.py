"""The mailbox between those who want trials trained and the lanes that train them: plain asyncio state, no Ray.

`lane.py` runs one `Mailbox` as a Ray actor on the driver's node. Jobs wait in a queue; a lane takes one, reports after
each epoch, and finishes it. A lane that comes back after its worker died is given the job that it held, with its last
checkpoint, so that a death costs the epochs since then; a job that keeps killing its worker is failed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]
# A worker's death is the machine's fault until the same job has done it so often without an epoch between.
MAX_DEATHS = 3


class Mailbox:
    """Queue, assignments, reports and checkpoints of one run.

    Messages to the asker of a job are dicts: `{"type": "report", ...EpochReport}` after each epoch and at last
    `{"type": "end", "state": completed|stopped|failed, "error": str|None, ...Outcome}`.
    """

    def __init__(self, checkpoints: str) -> None:
        self.checkpoints = Path(checkpoints)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.queue: deque[str] = deque()
        self.jobs: dict[str, bytes] = {}
        self.held: dict[str, str] = {}
        self.incarnation: dict[str, int] = {}
        self.nodes: dict[str, set[str]] = {}  # of all workers of a lane
        self.controllers: dict[str, Any] = {}
        self.rooms: dict[str, Any] = {}
        self.deaths: dict[str, int] = {}
        self.messages: dict[str, asyncio.Queue[Message]] = {}
        self.stops: dict[str, asyncio.Event] = {}  # of the jobs that have no end yet
        self.events: list[Message] = []
        self.closed = self.aborted = False
        self.changed = asyncio.Condition()

    async def submit(self, job_id: str, job: bytes) -> None:
        """Put a pickled job at the end of the queue."""
        self.jobs[job_id] = job
        self.stops[job_id] = asyncio.Event()
        self.messages[job_id] = asyncio.Queue()
        self.queue.append(job_id)
        await self._wake()

    async def enlist(self, lane: str, pid: int, nodes: Sequence[str] = ()) -> int:
        """A lane's first worker says that all are there, and where; returns an incarnation, which each `take` names."""
        self.incarnation[lane] = self.incarnation.get(lane, 0) + 1
        self.nodes[lane] = set(nodes)
        self._log({"type": "lane", "lane": lane, "pid": pid, "incarnation": self.incarnation[lane], "nodes": [*nodes]})
        await self._wake()
        return self.incarnation[lane]

    async def control(self, lane: str, controller: Any) -> None:
        """Who starts a lane's workers, and starts them again."""
        self.controllers[lane] = controller

    async def list_controllers(self) -> list[Any]:
        """Of all lanes that ever were."""
        return [*self.controllers.values()]

    async def occupy(self, lane: str, room: Any) -> None:
        """The placement group that a lane's workers are in from now on."""
        self.rooms[lane] = room

    async def room_of(self, lane: str) -> Any:
        """The last placement group of a lane; None where it never had one."""
        return self.rooms.get(lane)

    async def take(self, lane: str, incarnation: int) -> tuple[str, bytes] | None:
        """The next job of a lane, waiting for one; None when the lane should end."""
        if self.aborted or self.incarnation[lane] != incarnation:  # the latter: a late call of a worker that died
            return None
        if lane in self.held:
            job_id = self.held[lane]
            self.deaths[job_id] = self.deaths.get(job_id, 0) + 1
            if self.deaths[job_id] <= MAX_DEATHS:
                return job_id, self.jobs[job_id]
            self._end(lane, job_id, {"state": "failed", "error": f"its worker died {MAX_DEATHS + 1} times in a row"})
            await self._wake()
        async with self.changed:
            while not self.queue and not self.closed and self.incarnation[lane] == incarnation:
                await self.changed.wait()
        if not self.queue or self.incarnation[lane] != incarnation:
            return None
        job_id = self.queue.popleft()
        self.held[lane] = job_id
        self._log({"type": "start", "lane": lane, "job": job_id})
        return job_id, self.jobs[job_id]

    async def keep(self, nodes: set[str]) -> None:
        """Only these nodes are left. The job of a lane that lost one of its own goes to the next one that is free.

        The lane itself comes back where there is room for all of its workers; that may be never.
        """
        for lane in [lane for lane, own in self.nodes.items() if own - nodes]:
            self._leave(lane)
            if lane in self.held:
                self.queue.appendleft(self.held.pop(lane))
        await self._wake()

    async def present(self) -> int:
        """How many lanes are there."""
        return len(self.nodes)

    async def retire(self, count: int) -> None:
        """End so many lanes, of those that wait for a job while none waits for a lane."""
        idle = [lane for lane in self.nodes if lane not in self.held] if not self.queue else []
        for lane in idle[len(idle) - min(count, len(idle)) :]:
            self._leave(lane)
        await self._wake()

    def _leave(self, lane: str) -> None:
        """Whatever its worker still says is late."""
        del self.nodes[lane]
        self.incarnation[lane] += 1
        self._log({"type": "left", "lane": lane})

    async def report(self, lane: str, job_id: str, report: Message) -> None:
        """One epoch is done. A lane need not wait for this to arrive: whether to go on it is told by `stopping`."""
        self.deaths.pop(job_id, None)
        self._post(job_id, {"type": "report", "lane": lane, "job": job_id, **report})

    async def stopping(self, job_id: str) -> None:
        """Wait until a job should stop or has ended; a lane asks once, and looks for the answer after each epoch."""
        if job_id in self.stops:
            await self.stops[job_id].wait()

    async def finish(self, lane: str, job_id: str, outcome: Message) -> None:
        """The job has ended, well or not. One that a closing run cut short keeps its checkpoint and has no end."""
        if self.held.get(lane) == job_id and not (self.aborted and outcome["state"] == "stopped"):
            self._end(lane, job_id, outcome)
            await self._wake()

    def _end(self, lane: str, job_id: str, outcome: Message) -> None:
        self.held.pop(lane, None)
        self.deaths.pop(job_id, None)
        message = {"type": "end", "lane": lane, "job": job_id, "error": None, **outcome}
        self._post(job_id, message)
        self.jobs.pop(job_id, None)
        if job_id in self.stops:
            self.stops.pop(job_id).set()
        self._checkpoint(job_id).unlink(missing_ok=True)

    def _post(self, job_id: str, message: Message) -> None:
        self._log({key: value for key, value in message.items() if key != "model"})
        if job_id in self.messages:
            self.messages[job_id].put_nowait(message)

    def _log(self, event: Message) -> None:
        self.events.append({**event, "time": time.monotonic()})

    async def ended(self, job_id: str) -> None:
        """Wait until a job has ended."""
        async with self.changed:
            while job_id in self.jobs:
                await self.changed.wait()

    async def next_message(self, job_id: str) -> Message:
        """The next report or the end of a job, waiting for it."""
        return await self.messages[job_id].get()

    async def cancel(self, job_id: str) -> None:
        """As `stop`, and nobody will ask for its messages any more."""
        await self.stop(job_id)
        self.messages.pop(job_id, None)

    async def stop(self, job_id: str) -> None:
        """Ask for a job's end, at its next epoch; nothing happens where it has ended."""
        if job_id in self.stops:
            self.stops[job_id].set()

    async def stop_all(self) -> None:
        """A search ends before its trials: those that run stop at their next epoch, those that wait never begin."""
        self._stop_held()
        while self.queue:
            self._end("", self.queue.popleft(), {"state": "withdrawn"})
        await self._wake()

    def _stop_held(self) -> None:
        for job_id in self.held.values():
            self.stops[job_id].set()

    async def events_since(self, number: int) -> list[Message]:
        """All events from number `number` on: what the live view shows."""
        return self.events[number:]

    async def close(self, abort: bool = False) -> None:
        """Nothing more will come: lanes end once the queue is empty, or with `abort` at their next epoch."""
        self.closed, self.aborted = True, abort
        if abort:
            self.queue.clear()
            self._stop_held()
        await self._wake()

    async def give_up(self) -> None:
        """No lane is left: wake all who wait for a job with `{"type": "lost"}`."""
        self.closed = self.aborted = True
        self.queue.clear()
        for queue in self.messages.values():
            queue.put_nowait({"type": "lost"})
        self.jobs.clear()
        self._stop_held()
        await self._wake()

    async def save(self, job_id: str, state: bytes) -> None:
        """Keep a checkpoint in place of the last one; like a report it is progress (a pre-training has no reports)."""
        self.deaths.pop(job_id, None)
        path = self._checkpoint(job_id)
        part = path.with_suffix(".part")
        part.write_bytes(state)
        os.replace(part, path)

    async def load(self, job_id: str) -> bytes | None:
        """The job's last checkpoint, also one from before the driver died."""
        path = self._checkpoint(job_id)
        return path.read_bytes() if path.exists() else None

    def _checkpoint(self, job_id: str) -> Path:
        return self.checkpoints / f"{job_id}.pt"

    async def _wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()
