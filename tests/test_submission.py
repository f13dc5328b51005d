"""`sweeper submit`, `attach` and `down` against a real head of a Ray cluster, with its token, on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_line import NOISE, finish, read_to, start
from ray_head import TOKEN, Laptop, head, laptop
from test_store_faults import Proxy

NOWHERE = {"kind": "image_folder", "root": "/nowhere/on the head's disk", "image_size": 16}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("submission")
    with head(folder / "head") as (_, address):
        yield laptop(folder, address)


def jobs_of(user: Laptop, name: str) -> list[str]:
    """Submission ids and states of a space's jobs, as the cluster lists them."""
    code = """
import sys
from sweeper.jobs import Jobs
with Jobs(sys.argv[1], print) as jobs:
    for job in sorted(jobs.all(), key=lambda job: job.submission_id):
        print(job.submission_id, job.status.value, job.entrypoint, job.metadata)
"""
    env = {**os.environ, **user.more, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, user.address], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(f"sweeper-{name}-")]


# ---------------------------------------------------------------------------------------------- one run, seen twice


@pytest.fixture(scope="module")
def seen(user: Laptop) -> dict[str, subprocess.CompletedProcess[str]]:
    """Submitted, submitted again while it goes on and left by Ctrl-C, followed to its end; then looked at once more."""
    space = user.write("tiny.yaml")
    first = user.start(*user.submit(space), RAY_ADDRESS="127.0.0.1:1")  # of another cluster: not for us
    read = read_to(first, "^submitted to")
    second = user.start(*user.submit(space))
    left = read_to(second, "^sweeper tiny/")
    os.killpg(second.pid, signal.SIGINT)
    gone = finish(second)
    done = finish(first)
    return {
        "done": replace_output(done, read + done.stdout),
        "left": replace_output(gone, left + gone.stdout),
        "attached": user.sweeper("attach", "tiny", "--quiet"),
        "again": user.sweeper(*user.submit(space)),
    }


def replace_output(done: subprocess.CompletedProcess[str], out: str) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(done.args, done.returncode, out, done.stderr)


def test_a_submitted_run_prints_what_a_local_one_does_and_comes_home(
    user: Laptop, seen: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    done = seen["done"]
    assert (done.stderr, done.returncode) == ("", 0)
    assert not NOISE.search(done.stdout), NOISE.findall(done.stdout)
    for line in ("sweeper tiny/", "  data       20 train", "[1/2] trial ", "search: 2/2 trials", "total "):
        assert len(re.findall(f"^{re.escape(line)}", done.stdout, re.MULTILINE)) == 1, line
    (folder,) = (user.folder / "results" / "tiny").iterdir()
    assert f"files: results/tiny/{folder.name}/" in done.stdout
    assert {"done.json", "pareto.csv", "journal.log", "report.html", "models"} <= {
        path.name for path in folder.iterdir()
    }
    shown = user.sweeper("show", folder.name)
    assert shown.returncode == 0
    assert done.stdout.endswith(shown.stdout)


def test_a_second_submission_joins_the_first_and_ctrl_c_leaves_it_alone(
    user: Laptop, seen: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    left = seen["left"]
    assert (left.stderr, left.returncode) == ("", 130)
    assert "goes on there already" in left.stdout
    assert re.search(r"^detached: the run goes on; `sweeper attach tiny-\w+` follows it", left.stdout, re.MULTILINE)
    (job,) = jobs_of(user, "tiny")
    assert " SUCCEEDED " in job


def test_a_finished_run_is_shown_again_and_nothing_is_started(
    user: Laptop, seen: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    for name in ("attached", "again"):
        assert (seen[name].stderr, seen[name].returncode) == ("", 0), name
    assert "finished earlier; nothing was started" in seen["again"].stdout
    assert seen["attached"].stdout.splitlines()[0].split()[:3] == ["#", "trial", "teacher"]
    assert seen["attached"].stdout in seen["again"].stdout


def test_no_secret_is_in_what_the_cluster_lists(
    user: Laptop, seen: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    (job,) = jobs_of(user, "tiny")
    assert TOKEN not in job
    assert user.store.replace("'", "'\"'\"'") in job  # quoted for the shell, and the run worked


# ---------------------------------------------------------------------------------------------- other ends


@pytest.mark.slow  # three jobs
def test_a_run_that_fails_on_the_head_gives_its_message_and_exit_status(user: Laptop) -> None:
    space = user.write("fails.yaml", name="fails", dataset=NOWHERE)
    done = user.sweeper(*user.submit(space))
    assert done.returncode == 2
    assert re.fullmatch(r"error: dataset\.root: .*/nowhere/on the head's disk.*\n", done.stderr), done.stderr
    attached = user.sweeper("attach", "fails", "--quiet")
    assert (attached.returncode, attached.stderr) == (2, done.stderr)
    assert user.sweeper(*user.submit(space)).returncode == 2  # as another job: Ray takes a submission id once
    (note,) = (user.folder / "results" / ".submitted").glob("fails-*.json")
    jobs = [job.split()[:2] for job in jobs_of(user, "fails")]
    assert jobs == [[f"sweeper-{note.stem}-{number}", "FAILED"] for number in (1, 2)]


@pytest.mark.parametrize(
    ("more", "change", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, {}, "refuses the token of this machine"),
        ({}, {"address": "http://127.0.0.1:1"}, "nothing answers there"),
    ],
)
def test_a_cluster_that_does_not_let_us_in_is_an_error_at_once(
    user: Laptop, more: dict[str, str], change: dict[str, str], message: str
) -> None:
    address = change.get("address", user.address)
    done = user.sweeper("attach", "any", "--address", address, **more)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


FOLLOWER = """
import sys
from sweeper import jobs
jobs.RETRY_S = 0.1
with jobs.Jobs(sys.argv[1], lambda line: print("told:", line, flush=True)) as client:
    job = client.start("lost", 1, f"echo one; until [ -e {sys.argv[2]} ]; do sleep 0.1; done; echo two; exit 3", {})
    print(jobs.exit_status(client.follow(job, lambda line: print(line, flush=True))))
"""


@pytest.mark.slow  # another run of minutes on a loaded machine
def test_a_lost_connection_is_taken_up_again_where_it_was(user: Laptop) -> None:
    proxy, go_on = Proxy(int(user.address.rpartition(":")[2])), user.folder / "go-on"
    process = start(user.folder, f"http://127.0.0.1:{proxy.port}", str(go_on), code=FOLLOWER, more=user.more)
    read = read_to(process, "^one$")
    proxy.set("pass")  # whoever was connected is not any more
    go_on.touch()
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert [line for line in (read + done.stdout).splitlines() if "does not answer" not in line] == ["one", "two", "3"]


# ---------------------------------------------------------------------------------------------- Ray's launcher

# What ssh does for Ray: `-L` is a real forward to the head's dashboard, and a command is written down and not run.
STAND_IN = """
import json, os, pathlib, socket, sys, threading
folder, port, *arguments = sys.argv[1:]
with open(os.path.join(folder, "calls.jsonl"), "a") as log:
    log.write(json.dumps(arguments) + "\\n")
def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
if "-L" in arguments:
    local = int(arguments[arguments.index("-L") + 1].partition(":")[0])
    listener = socket.create_server(("127.0.0.1", local))
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", int(port)))
        for ends in ((client, server), (server, client)):
            threading.Thread(target=pump, args=ends, daemon=True).start()
"""


@pytest.fixture(scope="module")
def launcher(user: Laptop) -> Laptop:
    """The same user with a file of Ray's launcher, whose name is a trap for shells, and stand-ins for ssh and rsync."""
    folder = user.folder / "launcher"
    (folder / "bin").mkdir(parents=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    port = user.address.rpartition(":")[2]
    for tool in ("ssh", "rsync"):
        path = folder / "bin" / tool
        path.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -ES "{folder}/stand_in.py" "{folder}" {port} {tool} "$@"\n'
        )
        path.chmod(0o755)
    cluster = {
        "cluster_name": "sweeper-tests",
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "nobody"},
        "metadata": {"sweeper": {"head": {"resources": {"CPU": 2}}, "worker": {"resources": {"CPU": 1}}}},
        "head_start_ray_commands": ["ray start --head"],
    }
    (folder / "a $(touch pwned) cluster's.yaml").write_text(yaml.safe_dump(cluster))
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return replace(user, folder=folder, more={**user.more, "PATH": path, "RAY_TMPDIR": str(folder), "TMPDIR": "/tmp"})


def calls(user: Laptop) -> list[list[str]]:
    return [json.loads(line) for line in (user.folder / "calls.jsonl").read_text().splitlines()]


@pytest.mark.slow  # another head
def test_a_cluster_is_brought_up_reached_through_a_tunnel_and_taken_down(user: Laptop, launcher: Laptop) -> None:
    """The whole path: `ray up`, a job through a tunnel, no `down` until it is stopped (from elsewhere), `ray down`."""
    cluster = "a $(touch pwned) cluster's.yaml"
    space = launcher.write("far.yaml", name="far", search={"trials": 1000})
    started = launcher.sweeper("submit", cluster, space, "--store", launcher.store, "--detach")
    assert started.returncode == 0, started.stderr
    commands = [call[-1] for call in calls(launcher) if call[0] == "ssh"]
    assert any("ray start --head" in command for command in commands)
    assert any("-L" in call and call[call.index("-L") + 1].endswith(":localhost:8265") for call in calls(launcher))
    before = len(calls(launcher))

    refused = launcher.sweeper("down", cluster)
    assert refused.returncode == 2
    assert re.search(r"sweeper-far-\w+-1 goes on there; `sweeper attach RUN` follows", refused.stderr), refused.stderr
    elsewhere = replace(launcher, folder=user.folder / "elsewhere")
    elsewhere.folder.mkdir()
    stopped = elsewhere.sweeper("attach", "far", "--address", user.address, "--stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert "everything finished is kept" in stopped.stdout
    assert not any("ray stop" in call[-1] for call in calls(launcher)[before:])
    down = launcher.sweeper("down", cluster)
    assert down.returncode == 0, down.stderr
    gone = launcher.sweeper("attach", "far")
    assert gone.returncode == 1
    assert "is gone, or knows nothing of far-" in gone.stderr
    assert not list(launcher.folder.rglob("pwned"))


# ---------------------------------------------------------------------------------------------- a head that dies


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_on_a_new_head(tmp_path: Path) -> None:
    """Of the old one nothing is left but what was in the store, and no finished trial is trained again."""
    trial = {
        "teacher": "none",
        "student": {"model": "test_resnet"},
        "loss": {"ce": 1.0},
        "train": {"epochs": 2, "batch_size": 20, "epoch_size": 4000, "lr": {"loguniform": [1e-3, 1e-2]}},
    }
    sections = {
        "name": "moved",
        "trial": trial,
        "search": {"trials": 20, "sampler": "random", "scheduler": {"kind": "fifo"}},
    }
    with head(tmp_path / "old") as (_, address):
        user = laptop(tmp_path / "user", address)
        space = user.write("moved.yaml", **sections)
        followed = user.start(*user.submit(space))
        read_to(followed, r"^\[1/20\] trial")
        kept = ""
        while kept.count('"outcome"') < 2:
            time.sleep(0.5)
            assert followed.poll() is None, followed.communicate()
            kept = "".join(path.read_text() for path in Path(user.store).glob("runs/*/results/moved/*/journal.log"))
        followed.send_signal(signal.SIGINT)
        assert finish(followed).returncode == 130
    shutil.rmtree(tmp_path / "old")
    (journal,) = Path(user.store).glob("runs/*/results/moved/*/journal.log")
    kept = journal.read_text()
    with head(tmp_path / "new") as (_, address):
        done = replace(user, address=address).sweeper(*replace(user, address=address).submit(space))
    assert done.returncode == 0, done.stderr
    (folder,) = (user.folder / "results" / "moved").iterdir()
    assert (folder / "journal.log").read_text().startswith(kept)
    finished = kept.count('"outcome"')
    assert 2 <= finished < 20
    assert len(re.findall(r"^\[\d+/20\] trial", done.stdout, re.MULTILINE)) == 20 - finished
