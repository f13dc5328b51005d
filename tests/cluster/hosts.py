"""Machines that are namespaces of this one: network, processes, home and /tmp of their own, and a real sshd each.

    laptop 10.7.0.1 -- bridge -+- 10.7.0.10 head
                               +- 10.7.0.11 ...

They share this machine's system, so that nothing is installed on them, and the folder `shared`, at /srv, as by NFS.
Each is a process namespace: whatever was started there dies with it, and all of them with the process that made them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 900.0  # a deadline on a loaded machine, not a duration
TOOLS = ["unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd"]
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
SSHD = """Port 22
HostKey /home/.ssh/id
AuthorizedKeysFile /home/.ssh/id.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""
# Root's home is not /root, where this machine's Python may live. /tmp comes last: the folders lie there.
BOOT = """cd "$1"
ip link set lo up
mount --bind shared /srv
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount --bind passwd /etc/passwd
mount --bind "$2/home" /home
mount --bind "$2/tmp" /tmp
cd /home
exec $3
"""


def wait_for(what: Callable[[], object], log: Path) -> None:
    """Until it is so; with the log in the error if that never comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def missing() -> str:
    """Why there can be no such machines here, or an empty string."""
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install openssh-server rsync iproute2)"
    tried = subprocess.run([*NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True)
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """One machine.

    Attributes:
        folder: with its `home` and `tmp`, seen from this machine.
        pid: of its first process, seen from this machine.
    """

    address: str
    folder: Path
    pid: int

    def start(self, command: str) -> subprocess.Popen[str]:
        """A login shell's command on it."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid"]
        own = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "HOME": "/home", "LANG": "C.UTF-8", "TERM": "dumb"}
        return subprocess.Popen(
            [*enter, "bash", "--login", "-c", f"cd; {command}"],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, patience_s: float = PATIENCE_S) -> str:
        """Its output; it has to succeed."""
        process = self.start(command)
        out, _ = process.communicate(timeout=patience_s)
        assert process.returncode == 0, out
        return out

    def processes(self, name: str) -> list[int]:
        """Those on it whose command line has this part."""
        found, mine = [], os.readlink(f"/proc/{self.pid}/ns/pid")
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == mine and name.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found


@dataclass(frozen=True)
class Network:
    """A laptop and the machines that it reaches."""

    laptop: Host
    hosts: list[Host]
    shared: Path

    def cut_off(self, host: Host) -> None:
        """Pull the cable of one."""
        self.laptop.run(f"ip link set port{host.address.rpartition('.')[2]} down")


@contextmanager
def network(folder: Path, count: int) -> Iterator[Network]:
    """So many machines and a laptop, whose key opens them; all is gone in the end."""
    shared = folder / "shared"
    shared.mkdir()
    users = Path("/etc/passwd").read_text().splitlines()
    (folder / "passwd").write_text("\n".join(["root:x:0:0:root:/home:/bin/bash", *users[1:], ""]))
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", folder / "id"], check=True)
    with ExitStack() as stack:
        laptop = stack.enter_context(_booted(folder, "10.7.0.1", "sleep infinity"))
        laptop.run("ip link add switch type bridge && ip address add 10.7.0.1/24 dev switch && ip link set switch up")
        hosts = []
        for number in range(10, 10 + count):
            host = stack.enter_context(_booted(folder, f"10.7.0.{number}", "/usr/sbin/sshd -D -f /home/sshd_config"))
            ends = f"ip link add port{number} netns {laptop.pid} type veth peer name eth0 netns {host.pid}"
            subprocess.run(ends.split(), check=True)
            laptop.run(f"ip link set port{number} master switch up")
            # Ray asks the routing table for its own address.
            host.run(
                f"ip address add {host.address}/24 dev eth0; ip link set eth0 up; ip route add default via 10.7.0.1"
            )
            hosts.append(host)
        yield Network(laptop, hosts, shared)


@contextmanager
def _booted(folder: Path, address: str, program: str) -> Iterator[Host]:
    own = folder / address
    (own / "home/.ssh").mkdir(parents=True)
    (own / "tmp").mkdir(mode=0o1777)
    for name in ("id", "id.pub"):
        shutil.copy(folder / name, own / "home/.ssh")
    shutil.copytree("/etc/skel", own / "home", dirs_exist_ok=True)
    with (own / "home/.bashrc").open("a") as file:  # the code that was brought there, and not this checkout's
        file.write("export PYTHONPATH=$HOME/sweeper OMP_NUM_THREADS=1\n")
    (own / "home/sshd_config").write_text(SSHD)
    (own / "home/venv").symlink_to(sys.prefix)
    boot = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "sh", "-euc", BOOT, "boot", folder, address, program]
    with subprocess.Popen(boot, stdin=subprocess.DEVNULL) as process:
        try:
            yield Host(address, own, _first_process(process, program))
        finally:
            process.kill()


def _first_process(process: subprocess.Popen[bytes], program: str) -> int:
    """The pid of the machine's first process once it is what it shall be."""
    while process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if program.split()[0] in command and "mount" not in command:
                return int(child)
        time.sleep(0.05)
    raise AssertionError(f"a machine did not start: {process.returncode}")
