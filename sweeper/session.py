"""A Ray session that says nothing: started on this machine, or joined with an address."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from sweeper import interrupt
from sweeper.errors import InputError

logger = logging.getLogger("sweeper.ray")

# Workers inherit these; a lane's threads are set by its CPUs.
WORKER_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # a process for each lane; nobody takes this machine away
CACHE_SETTINGS = ("SWEEPER_CACHE", "SWEEPER_CACHE_GB")  # of this shell, passed on to all nodes
REACH_TIMEOUT_S = 10.0
DRIVER_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_enable_metrics_collection": "0",
}


@contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """Send what libraries write to file descriptor 2 into a file; Python's own `sys.stderr` stays where it was.

    Ray's C++ side logs to the driver's terminal, past Python and past its log level.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    python_stderr, terminal = sys.stderr, os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, closefd=False)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)


def hush_daemons() -> None:
    """Ray prints messages of its daemons (a worker died, many were started) whatever `log_to_driver` says: log them."""
    ray_worker.print_to_stdstream = lambda data, **kwargs: logger.debug("%s", data["lines"])


@contextmanager
def session(address: str | None, log: Path) -> Iterator[None]:
    """Ray for the block; a session that is already there is used and left running.

    Args:
        address: `auto`, `host:port` or `ray://...` of a running cluster; None starts Ray on this machine.
        log: where Ray's own lines go.

    Raises:
        InputError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in {**DRIVER_ENVIRONMENT, **WORKER_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    hush_daemons()
    with native_stderr_to(log):
        _connect(address)
        try:
            yield
        finally:
            ray.shutdown()


def refuse_dead(address: str) -> None:
    """Ray tries an address where nothing listens for minutes; one attempt of our own says so at once.

    Raises:
        InputError: nothing answers at `host:port`.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # `auto` and `local`: Ray looks them up itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--address {address}: nothing answers there ({error}); is the cluster up?") from error


def keep_token_private() -> None:
    """See to it that only this account can read the token of a Ray that is about to start here.

    Ray asks for a token by itself and makes one where there is none, but in a file that every account of the machine
    may read; a file that is there already keeps its mode. Without a home to write to the token lives in the
    environment, for this process and those that it starts.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    token = Path.home() / ".ray" / "auth_token"
    try:
        token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        token.touch(mode=0o600)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _connect(address: str | None) -> None:
    os.environ[PREEMPTION_WATCHER] = "0" if address is None else "1"
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            keep_token_private()
            ray.init(address="local", include_dashboard=False, **options)
        else:
            own = {name: os.environ[name] for name in CACHE_SETTINGS if name in os.environ}
            ray.init(address=address, runtime_env={"env_vars": {**WORKER_ENVIRONMENT, **own}}, **options)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        where = f"--address {address}" if address else "this machine"
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where}: Ray could not be reached or started: {reason}") from error
    interrupt.listen()  # after Ray, which has a handler of its own
