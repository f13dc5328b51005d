"""Ray's cluster launcher, as the command that its documentation describes: up, down, whether it is up, a tunnel.

The command and not `ray.autoscaler.sdk`, which calls itself experimental: it prints to the user's terminal in a process
of its own, and a tunnel has to be a process anyhow.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from sweeper import cluster_file
from sweeper.errors import InputError, RunFailed
from sweeper.wording import one_line

TUNNEL_PATIENCE_S = 60.0
_MACHINES = ("InstanceType", "machineType")  # what AWS and GCP call a node's size


def is_address(place: str) -> bool:
    """Whether a cluster is given by its dashboard's address, and not by its launcher's file."""
    return place.startswith(("http://", "https://"))


def costs(path: Path) -> str | None:
    """What bringing the cluster up begins to pay for; None for machines of one's own.

    Raises:
        InputError: the file can not be read, or says too little of its nodes.
    """
    found = cluster_file.read(path)
    written: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if written.get("provider", {}).get("type") == "local":
        return None
    node: Mapping[str, Any] = written["available_node_types"][found.head.name].get("node_config") or {}
    machine = next((str(node[key]) for key in _MACHINES if key in node), found.head.name)
    price = f"{found.head.price:g} dollars an hour" if found.head.price is not None else "no price in the file"
    lines = f"its head, {machine} ({price}), is billed until `sweeper down {path}`"
    if found.workers:
        most = sum(node.count for node in found.workers)
        names = ", ".join(
            node.name + (f" ({node.price:g} dollars an hour)" if node.price is not None else "")
            for node in found.workers
        )
        lines += f"; up to {most} workers come and go with the work: {names}"
    return lines


def is_up(path: Path) -> bool:
    """Whether the cluster has a head that was set up.

    Raises:
        InputError: Ray can not tell, such as without the cloud's credentials.
    """
    done = _ray("get-head-ip", path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode and "not found!" not in said:
        reason = next((line for line in reversed(said.splitlines()) if line.strip()), "no reason given")
        raise InputError(f"{path}: `ray get-head-ip` failed: {one_line(reason.strip())}")
    return done.returncode == 0


def up(path: Path) -> None:
    """Bring the cluster up; Ray says on the terminal what it does.

    Raises:
        RunFailed: it could not.
    """
    if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:  # the head and its clients share one
        _ray("get-auth-token", "--generate", stdout=subprocess.DEVNULL, umask=0o077)  # Ray would let everybody read it
    if _ray("up", "-y", path).returncode:
        raise RunFailed(
            f"{path}: `ray up` failed; mend what it says, and end what it started with `sweeper down {path}`"
        )


def down(path: Path) -> None:
    """End all nodes.

    Raises:
        RunFailed: it could not.
    """
    if _ray("down", "-y", path).returncode:
        raise RunFailed(f"{path}: `ray down` failed; look at your cloud's console: what it left is billed")


@contextmanager
def reached(place: str) -> Iterator[str]:
    """The address at which a cluster's dashboard answers while the block runs: through a tunnel for a launcher's file.

    Raises:
        ConnectionError: there is no way to it at the moment.
    """
    if is_address(place):
        yield place.rstrip("/")
        return
    port = _free_port()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*_COMMAND, "dashboard", "--port", str(port), place],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: the tunnel goes when we say so, ssh with it
        )
        try:
            try:
                _wait_for(port, process)
            except ConnectionError as error:
                log.seek(0)
                said = next((line for line in reversed(log.read().splitlines()) if line.strip()), "")
                raise ConnectionError(f"{error} {one_line(said.strip())}".strip()) from None
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


_COMMAND = (sys.executable, "-m", "ray.scripts.scripts")


def _ray(verb: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
    written = [str(part.absolute() if isinstance(part, Path) else part) for part in arguments]
    return subprocess.run([*_COMMAND, verb, *written], **options)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TUNNEL_PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConnectionError("`ray dashboard` ended:")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise ConnectionError(f"`ray dashboard` opened no tunnel in {TUNNEL_PATIENCE_S:g} s:")
