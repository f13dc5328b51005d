"""A cluster that is launched once for the tests of this folder: moto, roles, stand-ins for ssh and rsync, an audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
import yaml
from checkouts import REPOSITORY, checkout

CLUSTER = REPOSITORY / "cluster"
CONFIG: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
REGION = CONFIG["provider"]["region"]
BUCKET = "sweeper-test-store"
WORKERS = {"gpu_a10g": "g5.xlarge", "gpu_l4": "g6.xlarge"}
TRUST = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}

STAND_IN = """
import json, os, pathlib, shutil, sys
root, tool, *arguments = sys.argv[1:]
with open(f"{root}/calls.jsonl", "a") as log:
    log.write(json.dumps([tool, *arguments]) + "\\n")
if tool == "rsync":
    source, target = arguments[-2:]
    address, _, remote = target.partition(":")
    for home in ("~", os.environ["HOME"]):  # Ray writes out the home of synced files: the same one on all nodes
        remote = remote.removeprefix(home + "/")
    path = pathlib.Path(root, "nodes", address.partition("@")[2], remote)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, path, dirs_exist_ok=True) if source.endswith("/") else shutil.copy(source, path)
"""

# Loaded by every Python process below before anything else: Ray's, not moto's.
AUDIT = """
import json, os, sys
LOOPBACK = ("127.0.0.1", "::1", "localhost")
def watch(event, arguments):
    if event == "subprocess.Popen":
        subject = os.path.basename(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        subject = arguments[1][0]
    elif event == "socket.getaddrinfo":
        subject = arguments[0]
    else:
        return
    with open(os.environ["AUDIT_LOG"], "a") as log:
        log.write(json.dumps([event, subject]) + "\\n")
    if event != "subprocess.Popen" and subject not in LOOPBACK:
        raise PermissionError(f"{event} {subject}: off this machine")
sys.addaudithook(watch)
"""

# What the monitor process on the head does for a demand of one worker of each type, then for no demand.
AUTOSCALER = """
import json, os, sys
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance
reader = FileConfigReader(os.path.expanduser("~/ray_bootstrap_config.yaml"), skip_content_hash=False)
config = reader.get_cached_autoscaling_config()
provider = _get_node_provider(config.get_config("provider"), config.get_config("cluster_name"))
adapter = NodeProviderAdapter(provider, reader)
for node_type in sys.argv[1:]:
    adapter._launch_nodes_by_type(node_type, 1, "a-request")
for error in adapter.poll_errors():
    raise error
workers = {node.node_type: id for id, node in adapter.get_non_terminated().items() if node.node_type in sys.argv}
installed = Instance(cloud_instance_id=workers[sys.argv[1]], instance_type=sys.argv[1])
RayInstaller(provider, config).install_ray(installed, head_node_ip="10.0.0.1")
profiles = {node_type: provider.ec2.Instance(id).iam_instance_profile["Arn"] for node_type, id in workers.items()}
adapter._do_terminate(list(workers.values()), "a-request")
for error in adapter.poll_errors():
    raise error
print(json.dumps(profiles))
"""


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}


@dataclass(frozen=True, kw_only=True)
class Aws:
    """A moto server, its address and clients of it."""

    endpoint: str

    def client(self, service: str, **credentials: str) -> Any:
        keys = credentials or {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client(service, endpoint_url=self.endpoint, region_name=REGION, **keys)

    def credentials_of(self, role: str) -> dict[str, str]:
        """Keys of a role, as a node with its instance profile gets them."""
        arn = self.client("iam").get_role(RoleName=role)["Role"]["Arn"]
        keys = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="node")["Credentials"]
        names = {"aws_access_key_id": "AccessKeyId", "aws_secret_access_key": "SecretAccessKey"}
        return {name: keys[key] for name, key in (names | {"aws_session_token": "SessionToken"}).items()}

    @contextmanager
    def enforcing_policies(self) -> Iterator[None]:
        """Refuse what no policy allows, which moto does only when told."""
        try:
            self._reset_auth("0")
            yield
        finally:
            self._reset_auth("inf")

    def _reset_auth(self, free_requests: str) -> None:
        url = f"{self.endpoint}/moto-api/reset-auth"
        text = {"Content-Type": "text/plain"}  # a form would be parsed, and moto reads the bare body
        urllib.request.urlopen(urllib.request.Request(url, free_requests.encode(), text, method="POST")).close()


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What is left of `ray up` and of the autoscaler's round: processes, calls of ssh and rsync, audit, instances."""

    up: subprocess.CompletedProcess[str]
    autoscaler: subprocess.CompletedProcess[str]
    up_calls: list[list[str]]
    worker_calls: list[list[str]]
    audit: list[list[str]]
    head_files: Path
    instances: dict[str, dict[str, Any]]  # node type -> EC2's description, tags as a mapping


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        try:
            address = next(line for line in server.stderr if "Running on" in line).split()[-1]
            Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            yield Aws(endpoint=address)
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def roles(aws: Aws) -> None:
    """The two roles of cluster/README.md. Of the head's policy moto can check the actions only: it gives EC2 requests
    neither resource nor condition values, so both are taken out here."""
    iam = aws.client("iam")
    store = json.loads((CLUSTER / "aws-policy.json").read_text().replace("BUCKET", BUCKET))
    head = json.loads((CLUSTER / "aws-policy-head.json").read_text())
    for statement in head["Statement"]:
        statement.update(Resource="*")
        statement.pop("Condition", None)
    for role, policies in {"sweeper-head": {"store": store, "head": head}, "sweeper-worker": {"store": store}}.items():
        trust = json.dumps({"Version": "2012-10-17", "Statement": [TRUST]})
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        for name, document in policies.items():
            iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(document))


def environment(aws: Aws, folder: Path, home: Path) -> dict[str, str]:
    """An environment of its own: nothing of the caller's account, proxies or home reaches the command."""
    programs = folder / "bin"
    programs.mkdir()
    (folder / "stand_in.py").write_text(STAND_IN)
    (programs / "sitecustomize.py").write_text(AUDIT)
    for tool in ("ssh", "rsync"):
        script = f'#!/bin/sh\nexec "{sys.executable}" -ES "{folder}/stand_in.py" "{folder}" {tool} "$@"\n'
        (programs / tool).write_text(script)
        (programs / tool).chmod(0o755)
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    return keys | {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "PYTHONPATH": str(programs),
        "HOME": str(home),
        "AUDIT_LOG": str(folder / "audit.jsonl"),
        "AWS_ENDPOINT_URL": aws.endpoint,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture(scope="module")
def launched(aws: Aws, roles: None, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = tmp_path_factory.mktemp("cluster")
    home = folder / "laptop"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("a-token")
    env = environment(aws, folder, home)

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        where = checkout(folder / "checkout") if not (folder / "checkout").exists() else folder / "checkout"
        return subprocess.run(
            [sys.executable, *command], cwd=where, env=env | variables, capture_output=True, text=True, timeout=120
        )

    ray = ("-m", "ray.scripts.scripts")
    up = run(*ray, "up", "-y", "--no-config-cache", "cluster/aws.yaml")
    up_calls = lines(folder / "calls.jsonl")
    assert up.returncode == 0, up.stderr + up.stdout
    head_files = next((folder / "nodes").iterdir())
    (head_files / "sweeper-lock.txt").write_text("ray==2.60.0\n")  # the head's own setup writes it
    keys = {name.upper(): value for name, value in aws.credentials_of("sweeper-head").items()}
    with aws.enforcing_policies():
        autoscaler = run("-c", AUTOSCALER, *WORKERS, **keys, HOME=str(head_files))
    described = aws.client("ec2").describe_instances()["Reservations"]
    instances = [instance for reservation in described for instance in reservation["Instances"]]
    return Launched(
        up=up,
        autoscaler=autoscaler,
        up_calls=up_calls,
        worker_calls=lines(folder / "calls.jsonl")[len(up_calls) :],
        audit=lines(folder / "audit.jsonl"),
        head_files=head_files,
        instances={tags(instance)["ray-user-node-type"]: instance | {"Tags": tags(instance)} for instance in instances},
    )


@pytest.fixture(scope="module")
def store_bucket(roles: None) -> str:
    """The bucket that the roles' policies name; the test makes it."""
    return BUCKET
