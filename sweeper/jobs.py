"""Ray Jobs of one cluster: start one, find it again, follow its log, stop it. Survives a connection that goes away.

A job's submission id is the submission's with a number behind: Ray takes an id once, and a run that failed or was
stopped goes on as another job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeper import launcher
from sweeper.errors import InputError, RunFailed

PREFIX = "sweeper-"
STOP_PATIENCE_S = 60  # a driver's last copy of its results; Ray's own patience is 3 s
INTERRUPTED = 130
RETRY_S, PATIENCE_S = 5.0, 180.0  # of a connection that is lost, or a dashboard that is starting
_LEVEL = {"sweeper": "1"}  # marks our jobs among others


class Jobs:
    """A client that opens its way to the cluster when it is first needed, and again when it was lost."""

    def __init__(self, place: str, tell: Callable[[str], None]) -> None:
        self.place, self.tell = place, tell
        self._stack, self._client = ExitStack(), None

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._client = None
        self._stack.close()

    def latest(self, name: str) -> Any | None:
        """Ray's `JobDetails` of the submission's last job; None where this cluster knows of none."""
        found = {number_of(job.submission_id, name): job for job in self.all()}
        known = {number: job for number, job in found.items() if number}
        return known[max(known)] if known else None

    def all(self) -> list[Any]:
        """Every job that was submitted, sweeper's or not."""
        return [job for job in self._ask(lambda client: client.list_jobs()) if job.submission_id]

    def start(self, name: str, number: int, entrypoint: str, facts: Mapping[str, str]) -> str:
        """Start a job, or find that somebody has started this very one in the meantime; returns its submission id."""
        job = f"{PREFIX}{name}-{number}"
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S)}

        def submit(client: Any) -> None:
            try:
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job,
                    metadata=dict(facts),
                    runtime_env={"env_vars": environment},
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise

        self._ask(submit)
        return job

    def stop(self, job: str) -> None:
        """Ask a job to end, and wait until it has."""
        self._ask(lambda client: client.stop_job(job))
        while not self.info(job).status.is_terminal():
            time.sleep(1.0)

    def info(self, job: str) -> Any:
        """Ray's `JobDetails`."""
        return self._ask(lambda client: client.get_job_info(job))

    def follow(self, job: str, show: Callable[[str], None]) -> Any:
        """Show every line of a job's log, from its first one, until it has ended; returns its `JobDetails`.

        Raises:
            RunFailed: the cluster can not be reached any more. The job may well go on.
        """
        info = self.info(job)
        log = Log(f"Running entrypoint for job {job}: {info.entrypoint}\n", show)
        while not info.status.is_terminal():
            log.again()
            self._ask(lambda client: asyncio.run(_tail(client, job, log)))
            info = self.info(job)
        log.again()
        log.feed(self._ask(lambda client: client.get_job_logs(job)))
        log.end()
        return info

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        """Ask a cluster, and again over a new connection where one is lost. Whatever is asked may be asked twice."""
        deadline, told = time.monotonic() + PATIENCE_S, False
        while True:
            began = time.monotonic()
            try:
                if self._client is None:
                    self._client = _connect(self._stack.enter_context(launcher.reached(self.place)))
                return what(self._client)
            except _lost() as error:
                self.close()
                now = time.monotonic()
                if now - began > PATIENCE_S:  # it had been there for long: a log that was followed
                    deadline, told = now + PATIENCE_S, False
                if now > deadline or launcher.is_address(self.place) and not told and now - began < 1 and _never(self):
                    raise RunFailed(f"{self.place}: can not be reached: {error}") from error
                if not told:
                    self.tell(f"{self.place} does not answer ({error}); trying again")
                    told = True
                time.sleep(RETRY_S)
