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

from sweeper import interrupt, launcher
from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.wording import one_line

PREFIX = "sweeper-"
STOP_PATIENCE_S = 60  # a driver's last copy of its results; Ray's own patience is 3 s
RETRY_S, TRIES = 5.0, 36  # of a connection that is lost, or a dashboard that is starting
_NO_AGENT = "No available agent to submit job"  # a head that has just started


class Interrupted(SweeperError):
    """Ctrl-C, or a job that was asked to end."""

    exit_status = interrupt.STATUS


class Jobs:
    """A client that opens its way to the cluster when it is first needed, and again when it was lost."""

    def __init__(self, place: str, tell: Callable[[str], None]) -> None:
        self.place, self.tell = place, tell
        self._stack = ExitStack()
        self._client: Any = None
        self._was_reached = False

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
                if _NO_AGENT in str(error):
                    raise ConnectionError(_NO_AGENT) from error
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
            self._ask(lambda client: asyncio.run(_tail(client, job, log)))
            info = self.info(job)
        log.again()
        log.feed(self._ask(lambda client: client.get_job_logs(job)))
        log.end()
        return info

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        """Ask a cluster, and again over a new connection where one is lost. Whatever is asked may be asked twice."""
        tries = 0
        while True:
            began = time.monotonic()
            try:
                if self._client is None:
                    self._client = _connect(self._stack.enter_context(launcher.reached(self.place)))
                    self._was_reached = True
                return what(self._client)
            except _losses() as error:
                self.close()
                tries = 1 if time.monotonic() - began > RETRY_S * TRIES else tries + 1  # it had been there for long
                if not self._was_reached and launcher.is_address(self.place):
                    raise InputError(f"--address {self.place}: nothing answers there ({error}); is it up?") from error
                if tries > TRIES:
                    raise RunFailed(f"{self.place} can not be reached: {error}") from error
                if tries == 1:
                    self.tell(f"{self.place} does not answer; trying again")
                time.sleep(RETRY_S)
            except RuntimeError as error:  # of the server, with its stack
                lines = [line for line in str(error).splitlines() if line.strip(" .")] or ["no reason given"]
                raise RunFailed(f"{self.place}: {lines[-1].strip()}") from error


class Log:
    """A job's log as its parts come: each line is shown once, however often the log is read again from its start.

    Args:
        start: what Ray writes before the job's own first line; that and all before it is not shown.
    """

    def __init__(self, start: str, show: Callable[[str], None]) -> None:
        self._start, self._show, self._shown = start, show, 0
        self.again()

    def again(self) -> None:
        """The log begins anew."""
        self._rest, self._has_begun, self._seen = "", False, 0

    def feed(self, text: str) -> None:
        """The log's next part, which may end within a line."""
        self._rest += text
        if not self._has_begun:
            _, start, after = self._rest.partition(self._start)
            if not start:
                return
            self._has_begun, self._rest = True, after
        *lines, self._rest = self._rest.split("\n")
        for line in lines:
            self._seen += 1
            if self._seen > self._shown:
                self._shown = self._seen
                self._show(line)

    def end(self) -> None:
        """Nothing follows: a last line needs no end of its own."""
        if self._has_begun and self._rest:
            self.feed("\n")


def number_of(job: str, name: str) -> int:
    """Which of a submission's jobs an id is, from 1; 0: another's."""
    number = job.removeprefix(f"{PREFIX}{name}-")
    return int(number) if number != job and number.isdecimal() else 0


def exit_status(info: Any) -> int:
    """Of an ended job: the run's own, 130 where it was stopped, 1 where its process was killed or never began."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return interrupt.STATUS
    code = info.driver_exit_code
    return code if code is not None and 0 < code < 256 else 1


async def _tail(client: Any, job: str, log: Log) -> None:
    log.again()  # Ray sends it from its start, over a second connection as well
    try:
        async for text in client.tail_job_logs(job):
            log.feed(text)
    except RuntimeError as error:  # how Ray tells of a connection that broke off
        raise ConnectionError(str(error)) from error


def _connect(address: str) -> Any:
    """Ray's client, with the token where there is one.

    Raises:
        InputError: the token is not the cluster's.
    """
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take these instead of what it is given
        os.environ.pop(name, None)
    token = Path.home() / ".ray" / "auth_token"
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # else Ray sends none
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"{address}: the cluster refuses the token of this machine ({one_line(str(error).splitlines()[0])}); it is "
            "read from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and has to be the cluster's"
        ) from error


def _losses() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests

    return ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError, TimeoutError
