"""`cluster/gcp.yaml` in Ray's own GCP provider, with Google's own description of its API and no way off this machine.

Ray's bootstrap and node provider run as `ray up` and the head's autoscaler run them. Below them stands no network but a
function that answers what the API would; every request body is held against Google's discovery document, which comes
with its client, and which knows no key that the API does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
TEXT = (CLUSTER / "gcp.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT.replace("PROJECT", "a-project"))
NODE_TYPES = CONFIG["available_node_types"]
ZONE = CONFIG["provider"]["availability_zone"]
ACCOUNT = "@a-project.iam.gserviceaccount.com"


def strange(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> list[str]:
    """Dotted paths of what a discovery document does not know."""
    schema = document["schemas"][schema["$ref"]] if "$ref" in schema else schema
    if isinstance(value, list):
        return [s for i, item in enumerate(value) for s in strange(document, schema["items"], item, f"{where}.{i}")]
    if not isinstance(value, dict):
        return [where] if "enum" in schema and value not in schema["enum"] else []
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    found = []
    for key, item in value.items():
        inner = known.get(key, rest)
        found += strange(document, inner, item, f"{where}.{key}") if inner else [f"{where}.{key}"]
    return found


@dataclass
class Google:
    """Answers as the API does for an account in which nothing has been made yet, and remembers what it was asked."""

    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)

    def request(self, uri: str, method: str = "GET", body: str | None = None, *_: Any, **__: Any) -> Any:
        import httplib2

        path = urlsplit(uri).path
        content = json.loads(body) if body else None
        self.asked.append((method, path, content))
        answer = self.answer(method, path, content)
        return httplib2.Response({"status": "404" if answer is None else "200"}), json.dumps(answer or {}).encode()

    def answer(self, method: str, path: str, body: Any) -> dict[str, Any] | None:
        if path.endswith("/serviceAccounts") and method == "POST":
            return {"projectId": "a-project", "email": f"ray-autoscaler-sa-v1{ACCOUNT}"}
        if "/serviceAccounts/" in path:
            return None
        if (
            path.endswith(("/operations/done", "setIamPolicy", "setLabels", "setCommonInstanceMetadata"))
            or method == "DELETE"
        ):
            return {"name": "done", "status": "DONE"}
        if path.endswith("/instances"):
            if method == "GET":
                return {"items": self.instances}
            self.instances.append({**body, "status": "RUNNING"})
            return {"name": "done"}
        if path.endswith("/subnetworks"):
            return {"items": [{"selfLink": "regions/us-central1/subnetworks/default"}]}
        if path.endswith("getIamPolicy"):
            return {"bindings": []}
        return {
            "projectId": "a-project",
            "name": "a-project",
            "lifecycleState": "ACTIVE",
            "commonInstanceMetadata": {},
        }


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Google]:
    pytest.importorskip("googleapiclient", reason="google-api-python-client is not installed")
    import httplib2

    server = Google()
    monkeypatch.setattr(httplib2.Http, "request", lambda _, *args, **options: server.request(*args, **options))
    monkeypatch.setenv("HOME", str(tmp_path))  # the key pair goes to ~/.ssh
    return server


@pytest.fixture
def provider(google: Google) -> Any:
    """Ray's provider with the configuration that its bootstrap made of the file."""
    from ray.autoscaler._private.gcp.config import bootstrap_gcp
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
    from ray.autoscaler._private.util import prepare_config

    account = {"gcp_credentials": {"type": "credentials_token", "credentials": "a-token"}}
    config = bootstrap_gcp(prepare_config(CONFIG | {"provider": CONFIG["provider"] | account}))
    found = GCPNodeProvider(config["provider"], config["cluster_name"])
    found.types = config["available_node_types"]
    return found


def launch(provider: Any, google: Google, node_type: str) -> dict[str, Any]:
    """The instance that the API was asked for."""
    provider.create_node(provider.types[node_type]["node_config"], {"ray-node-name": "n", "ray-node-type": "worker"}, 1)
    return google.instances[-1]


def unknown(instance: dict[str, Any]) -> list[str]:
    """What Google's description of its API does not know in it."""
    import googleapiclient

    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    document = json.loads((folder / "compute.v1.json").read_text())
    return strange(document, {"$ref": "Instance"}, instance, "instance")


@pytest.mark.parametrize("node_type", NODE_TYPES)
def test_the_api_knows_all_that_ray_asks_it_for(google: Google, provider: Any, node_type: str) -> None:
    assert unknown(launch(provider, google, node_type)) == []


def test_a_typo_in_a_node_would_be_refused(google: Google, provider: Any) -> None:
    worker = launch(provider, google, "gpu_l4")
    worker["disks"][0]["initializeParams"]["diskSizeGB"] = 150
    worker["scheduling"]["provisioningModel"] = "SPTO"
    assert unknown(worker) == [
        "instance.disks.0.initializeParams.diskSizeGB",
        "instance.scheduling.provisioningModel",
    ]


def test_the_head_is_on_demand_and_workers_are_spot_machines_that_leave_nothing(google: Google, provider: Any) -> None:
    head = launch(provider, google, "head")
    assert "scheduling" not in head
    assert "guestAccelerators" not in head
    for node_type, machine in {"gpu_l4": "g2-standard-4", "gpu_t4": "n1-standard-4"}.items():
        worker = launch(provider, google, node_type)
        assert worker["machineType"] == f"zones/{ZONE}/machineTypes/{machine}"
        assert worker["scheduling"]["provisioningModel"] == "SPOT"
        assert worker["scheduling"]["instanceTerminationAction"] == "DELETE"
        assert worker["disks"][0]["autoDelete"] is True
        assert worker["labels"]["ray-cluster-name"] == "sweeper"
    assert google.instances[-1]["guestAccelerators"][0]["acceleratorType"].endswith(
        f"{ZONE}/acceleratorTypes/nvidia-tesla-t4"
    )
    provider.terminate_node(google.instances[-1]["name"])
    assert (
        "DELETE",
        f"/compute/v1/projects/a-project/zones/{ZONE}/instances/{google.instances[-1]['name']}",
        None,
    ) in google.asked


def test_the_heads_role_allows_what_its_autoscaler_asks_for_and_no_more(google: Google, provider: Any) -> None:
    google.asked.clear()
    name = launch(provider, google, "gpu_t4")["name"]
    google.instances[-1]["labelFingerprint"] = "a-fingerprint"
    provider.set_node_tags(name, {"ray-node-status": "up-to-date"})
    provider.terminate_node(name)
    asked = {(method, re.sub(r"/[^/]*-compute", "/NAME", path.rpartition(ZONE)[2])) for method, path, _ in google.asked}
    needed = {
        ("GET", "/instances"): "compute.instances.list",
        ("POST", "/instances"): "compute.instances.create",
        ("POST", "/instances/NAME/setLabels"): "compute.instances.setLabels",
        ("DELETE", "/instances/NAME"): "compute.instances.delete",
        ("GET", "/operations/done"): "compute.zoneOperations.get",
    }
    assert asked == set(needed)
    readme = (CLUSTER / "README.md").read_text().replace("\\\n", "")
    (granted,) = re.findall(r"roles create sweeperHead .* --permissions (\S+)", readme)
    # What creating an instance asks for besides, by Google's reference of instances.insert; `get` is Ray's second try.
    with_it = {"disks.create", "subnetworks.use", "subnetworks.useExternalIp", "instances.setServiceAccount"}
    assert set(granted.split(",")) == {
        *needed.values(),
        "compute.instances.get",
        *(f"compute.{each}" for each in with_it),
    }


def test_no_node_gets_the_mighty_account_that_ray_makes(google: Google, provider: Any) -> None:
    """Ray makes one and gives it the project's storage and machines; the file's own stand above it."""
    assert any(path.endswith("setIamPolicy") for _, path, _ in google.asked)
    accounts = {
        node_type: launch(provider, google, node_type)["serviceAccounts"][0]["email"] for node_type in NODE_TYPES
    }
    worker = f"sweeper-worker{ACCOUNT}"
    assert accounts == {"head": f"sweeper-head{ACCOUNT}", "gpu_l4": worker, "gpu_t4": worker}


def test_one_zone_and_one_region_are_meant_throughout() -> None:
    assert set(re.findall(r"us-central1-\w", TEXT)) == {ZONE}
    assert ZONE.startswith(CONFIG["provider"]["region"])
