"""`ray up cluster/onprem.yaml` for real: Ray's launcher, sshd, and three machines, one of which is lost in the middle.

The machines are namespaces (hosts.py). Their file is the repository's but for addresses, user and key, for pip, which
would install what this machine has, and for the size that Ray's processes are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hosts
import pyarrow.parquet as pq
import pytest
import yaml
from checkouts import REPOSITORY, checkout

TRIALS = 12
RUN = (
    "cd sweeper && sweeper run search_spaces/smoke.yaml --address auto --store /srv/store"
    f" --set search.trials={TRIALS} --set trial.train.epochs=12 > /srv/run.log 2>&1"
)

pytestmark = pytest.mark.slow


def adapted(network: hosts.Network) -> dict[str, Any]:
    """The file for these machines."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / "onprem.yaml").read_text())
    head, *workers = (host.address for host in network.hosts)
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
    config["metadata"]["sweeper"] = {name: {"resources": {"CPU": 1}} for name in ("head", "worker")}
    for key, commands in config.items():
        if key.endswith("setup_commands"):
            config[key] = ["ray --version" if "pip install" in each else each for each in commands]
        if key.endswith("start_ray_commands"):
            small = "ray start --num-cpus=1 --object-store-memory=200000000"
            config[key] = [each.replace("ray start", small) for each in commands]
    return config


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Network]:
    if reason := hosts.missing():
        pytest.skip(reason)
    with hosts.network(tmp_path_factory.mktemp("hosts"), 3) as found:
        home = found.laptop.folder / "home"
        project = checkout(home / "project")
        (project / "cluster/onprem.yaml").write_text(yaml.safe_dump(adapted(found), sort_keys=False))
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("a-token-of-the-test")
        yield found


def test_a_sweep_survives_the_loss_of_a_machine_of_a_cluster_that_ray_up_made(network: hosts.Network) -> None:
    laptop, (head, lost, other) = network.laptop, network.hosts
    log = network.shared / "run.log"
    ray = "cd project && export RAY_USAGE_STATS_ENABLED=0 && ~/venv/bin/ray"
    laptop.run(f"{ray} up -y cluster/onprem.yaml")
    hosts.wait_for(lambda: all(host.processes("raylet/raylet") for host in network.hosts), log)

    run = laptop.start(f"{ray} exec cluster/onprem.yaml '{RUN}'")
    hosts.wait_for(lambda: run.poll() is not None or lost.processes("TrainWorker"), log)
    hosts.wait_for(
        lambda: run.poll() is not None or list(head.folder.glob("home/sweeper/results/smoke/*/journal.log")), log
    )
    assert run.poll() is None, log.read_text()
    network.cut_off(lost)
    out, _ = run.communicate(timeout=hosts.PATIENCE_S)
    assert run.returncode == 0, out + log.read_text()

    (results,) = (head.folder / "home/sweeper/results/smoke").iterdir()
    states = pq.read_table(results / "trials.parquet", columns=["state"])["state"].to_pylist()
    assert states == ["completed"] * TRIALS
    assert (results / "pareto.parquet").exists()
    assert (head.folder / "home/.ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert (other.folder / "home/sweeper-lock.txt").read_text() == (head.folder / "home/sweeper-lock.txt").read_text()

    laptop.run(f"{ray} down -y cluster/onprem.yaml")
    hosts.wait_for(lambda: not head.processes("ray/core/src/ray"), log)
    hosts.wait_for(lambda: not other.processes("raylet/raylet"), log)  # without a head it ends by itself
