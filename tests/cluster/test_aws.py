"""`ray up cluster/aws.yaml` itself, driven to its end against a moto server, with no way off this machine.

Ray's command line runs as a user runs it, in a process whose `ssh` and `rsync` are stand-ins that write down what they
are asked and open no connection (`rsync` copies into a folder a node, so that the head's files can be used afterwards),
and whose audit hook refuses any address but the loopback. Then Ray's own autoscaler code is run with the files that the
head would have: it launches the workers, installs one and takes both away. No command of a node is executed, so what
these tests can not see is whether the commands work on the image; moto does not resolve the image either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from .conftest import Aws, Launched

REPOSITORY = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / "aws.yaml").read_text())
NODE_TYPES: dict[str, Any] = CONFIG["available_node_types"]
WORKERS = {"gpu_a10g": "g5.xlarge", "gpu_l4": "g6.xlarge"}


def ran(calls: list[list[str]], part: str) -> int:
    """Position of the first ssh call whose command has this part."""
    found = [number for number, call in enumerate(calls) if call[0] == "ssh" and part in call[-1]]
    assert found, f"no node was told to run {part!r}"
    return found[0]


def test_rays_schema_accepts_the_file_and_would_refuse_a_typo() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    config = CONFIG | {"available_node_types": {k: {"resources": {}} | v for k, v in NODE_TYPES.items()}}
    validate_config(config)
    with pytest.raises(ValidationError):
        validate_config(config | {"idle_timeout_minuets": 10})


def test_the_head_is_on_demand_tagged_and_up_to_date(launched: Launched) -> None:
    head = launched.instances["head"]
    assert head["InstanceType"] == NODE_TYPES["head"]["node_config"]["InstanceType"]
    assert "InstanceLifecycle" not in head
    assert head["State"]["Name"] == "running"
    assert head["IamInstanceProfile"]["Arn"].endswith("/sweeper-head")
    expected = {"Name": "ray-sweeper-head", "ray-cluster-name": "sweeper", "ray-node-type": "head"}
    assert expected | {"ray-node-status": "up-to-date"} == {
        key: head["Tags"][key] for key in (*expected, "ray-node-status")
    }


def test_the_head_gets_the_project_and_the_token_before_it_installs_and_starts(launched: Launched) -> None:
    calls = launched.up_calls
    synced = [call[-1].partition(":")[2].rstrip("/") for call in calls if call[0] == "rsync"]
    assert set(CONFIG["file_mounts"]) | {"~/ray_bootstrap_config.yaml", "~/ray_bootstrap_key.pem"} == set(synced)
    assert (launched.head_files / ".ray/auth_token").read_text() == "a-token"
    assert (launched.head_files / "sweeper/pyproject.toml").exists()
    assert (launched.head_files / "sweeper/sweeper/__init__.py").exists()
    last_copy = max(number for number, call in enumerate(calls) if call[0] == "rsync")
    steps = ["chmod 600", "python3 -m venv", "RAY_AUTH_MODE", "pip install -q -e ~/sweeper", "pip freeze", "ray stop"]
    order = [ran(calls, "uptime"), last_copy, *(ran(calls, step) for step in steps), ran(calls, "ray start --head")]
    assert order == sorted(order)
    assert order[-1] == len(calls) - 1


def test_the_head_starts_with_token_authentication_and_a_loopback_dashboard(launched: Launched) -> None:
    start = launched.up_calls[ran(launched.up_calls, "ray start --head")][-1]
    for part in ("export RAY_AUTH_MODE=token", "--dashboard-host=127.0.0.1", "--autoscaling-config=~/ray_bootstrap"):
        assert part in start


def test_the_heads_autoscaler_launches_spot_workers_of_both_types_and_takes_them_away(launched: Launched) -> None:
    assert launched.autoscaler.returncode == 0, launched.autoscaler.stderr
    profiles = json.loads(launched.autoscaler.stdout.splitlines()[-1])  # EC2 forgets them with the instance
    for node_type, instance_type in WORKERS.items():
        worker = launched.instances[node_type]
        assert worker["InstanceType"] == instance_type
        assert worker["InstanceLifecycle"] == "spot"
        assert profiles[node_type].endswith("/sweeper-worker")
        assert worker["Tags"]["ray-cluster-name"] == "sweeper"
        assert worker["State"]["Name"] == "terminated"


def test_ray_reads_the_gpus_and_the_bounds_from_the_file(launched: Launched) -> None:
    config = json.loads((launched.head_files / "ray_bootstrap_config.yaml").read_text())
    assert config["idle_timeout_minutes"] == CONFIG["idle_timeout_minutes"]
    for node_type in WORKERS:
        worker = config["available_node_types"][node_type]
        assert worker["resources"]["GPU"] == 1
        assert (worker["min_workers"], worker["max_workers"]) == (0, CONFIG["max_workers"])
    assert "GPU" not in config["available_node_types"]["head"]["resources"]


def test_a_worker_installs_what_the_head_has_and_joins_it(launched: Launched) -> None:
    calls = launched.worker_calls
    assert any(call[0] == "rsync" and call[-1].endswith("/sweeper-lock.txt") for call in calls)
    steps = ["uptime", "chmod 600", "python3 -m venv", "-c ~/sweeper-lock.txt", "ray stop", "ray start --address"]
    order = [ran(calls, step) for step in steps]
    assert order == sorted(order)
    start = calls[order[-1]][-1]
    assert "RAY_HEAD_IP=10.0.0.1" in start
    assert "export RAY_AUTH_MODE=token" in start


def test_nothing_left_this_machine(launched: Launched) -> None:
    addresses = {subject for event, subject in launched.audit if event != "subprocess.Popen"}
    assert addresses
    assert addresses <= {"127.0.0.1", "localhost", "::1"}
    started = [subject for event, subject in launched.audit if event == "subprocess.Popen"]
    stand_ins = [call[0] for call in launched.up_calls + launched.worker_calls]
    assert sorted(started) == sorted(stand_ins)


def test_the_store_policy_opens_its_bucket_and_no_other(aws: Aws, store_bucket: str) -> None:
    owner = aws.client("s3")
    for bucket in (store_bucket, "of-somebody-else"):
        owner.create_bucket(
            Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": CONFIG["provider"]["region"]}
        )
    worker = aws.credentials_of("sweeper-worker")
    s3, ec2 = aws.client("s3", **worker), aws.client("ec2", **worker)
    with aws.enforcing_policies():
        s3.put_object(Bucket=store_bucket, Key="sweeper/records/a.json", Body=b"{}")
        assert s3.list_objects_v2(Bucket=store_bucket)["KeyCount"] == 1
        assert s3.get_object(Bucket=store_bucket, Key="sweeper/records/a.json")["Body"].read() == b"{}"
        s3.delete_object(Bucket=store_bucket, Key="sweeper/records/a.json")
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.put_object(Bucket="of-somebody-else", Key="a", Body=b"")
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.delete_bucket(Bucket=store_bucket)
        with pytest.raises(ClientError, match="AccessDenied"):
            ec2.describe_instances()
