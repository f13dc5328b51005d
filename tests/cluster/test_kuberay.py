"""`cluster/kuberay.yaml` against the schemas of KubeRay's own resource definitions.

`kuberay_crds.json.gz` holds `openAPIV3Schema` of version v1 of RayCluster and RayJob, without `status`, from
ray-operator/config/crd/bases of https://github.com/ray-project/kuberay at v1.7.0 (Apache-2.0, as this project).
Kubernetes prunes what a schema does not know, so that a typo is silently nothing: here unknown keys are refused. No
manifest has been applied to a real cluster yet.
"""

from __future__ import annotations

import copy
import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from sweeper import cluster_file, nodes

CLUSTER = Path(__file__).parents[2] / "cluster"
MANIFESTS: dict[tuple[str, str], dict[str, Any]] = {
    (found["kind"], found["metadata"]["name"]): found
    for found in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
}
CUSTOM = [MANIFESTS["RayCluster", "sweeper"], MANIFESTS["RayJob", "sweeper-run"]]
RAY_CLUSTER = CUSTOM[0]["spec"]
HEAD = RAY_CLUSTER["headGroupSpec"]["template"]["spec"]
MOUNTS = HEAD["containers"][0]["volumeMounts"]
(GROUP,) = RAY_CLUSTER["workerGroupSpecs"]
WORKER = GROUP["template"]["spec"]


def strict(schema: Any) -> Any:
    """A schema in which an object that lists its properties has no others; Kubernetes' names or numbers are both."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def mistakes(manifest: dict[str, Any]) -> list[str]:
    """Where a manifest differs from its resource's definition."""
    schemas = json.loads(gzip.decompress((Path(__file__).parent / "kuberay_crds.json.gz").read_bytes()))
    schema = strict(schemas[manifest["kind"]])
    schema["properties"]["metadata"] = {"type": "object"}  # left open there: Kubernetes has its own for it
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("manifest", CUSTOM, ids=lambda manifest: manifest["kind"])
def test_kuberays_own_schema_accepts_the_manifest(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    assert mistakes(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("spec", "authOptions", "secertName"), "a", "secertName"),
        (("spec", "authOptions", "mode"), "tokne", "tokne"),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 8, "maxReplica"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "nodeSelectors"), {}, "nodeSelectors"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limit"), {}, "limit"),
        (("spec", "autoscalerOptions", "idleTimeoutSeconds"), "600", "integer"),
    ],
)
def test_a_typo_in_it_would_be_refused(path: tuple[Any, ...], value: Any, expected: str) -> None:
    broken: Any = copy.deepcopy(CUSTOM[0])
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (mistake,) = mistakes(broken)
    assert expected in mistake


def test_workers_are_spot_pods_with_one_gpu_each_from_none_to_eight() -> None:
    assert RAY_CLUSTER["enableInTreeAutoscaling"] is True
    assert (GROUP["replicas"], GROUP["minReplicas"], GROUP["maxReplicas"]) == (0, 0, 8)
    assert WORKER["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert {"nvidia.com/gpu", "spot"} == {toleration["key"] for toleration in WORKER["tolerations"]}
    for pod in (HEAD, WORKER):
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    assert WORKER["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in HEAD["containers"][0]["resources"]["limits"]


def test_a_token_is_required_and_comes_from_the_secret_that_the_commands_make() -> None:
    assert RAY_CLUSTER["authOptions"] == {"mode": "token", "secretName": "sweeper-token"}
    assert "create secret generic sweeper-token --from-file=auth_token=" in (CLUSTER / "kuberay.yaml").read_text()


def test_image_python_and_ray_are_those_of_the_other_clusters() -> None:
    first, *_ = (line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    version = RAY_CLUSTER["rayVersion"]
    assert first == f"FROM rayproject/ray:{version}-py312"  # Ubuntu 24.04's Python is 3.12 too
    assert f"=={version}" in (CLUSTER / "aws.yaml").read_text()
    assert {pod["containers"][0]["image"] for pod in (HEAD, WORKER)} == {f"REGISTRY/sweeper:{version}"}


def test_what_the_pods_name_is_there() -> None:
    for pod in (HEAD, WORKER):
        account = MANIFESTS["ServiceAccount", pod["serviceAccountName"]]
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/sweeper-pod")
    assert MANIFESTS["ServiceAccount", WORKER["serviceAccountName"]]["automountServiceAccountToken"] is False
    results, sizes = HEAD["volumes"]
    assert ("PersistentVolumeClaim", results["persistentVolumeClaim"]["claimName"]) in MANIFESTS
    assert ("ConfigMap", sizes["configMap"]["name"]) in MANIFESTS
    assert [volume["name"] for volume in (results, sizes)] == [mount["name"] for mount in MOUNTS]


def test_a_run_on_the_head_knows_the_workers_that_the_autoscaler_may_add(tmp_path: Path) -> None:
    (told,) = MANIFESTS["ConfigMap", "sweeper-nodes"]["data"].values()
    path = tmp_path / nodes.LAUNCHERS_FILE
    assert MOUNTS[1]["mountPath"] == f"/home/ray/{path.name}"
    path.write_text(told)
    found = cluster_file.read(path)
    (worker,) = found.workers
    limits, head = (pod["containers"][0]["resources"]["limits"] for pod in (WORKER, HEAD))
    assert (worker.name, worker.count) == (GROUP["groupName"], GROUP["maxReplicas"])
    assert (worker.cpus, worker.gpus) == (float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
    assert found.head.cpus == float(head["cpu"])


def test_the_job_runs_a_file_of_the_image_on_this_cluster_and_keeps_results_on_the_volume() -> None:
    job = CUSTOM[1]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": CUSTOM[0]["metadata"]["name"]}
    words = shlex.split(job["entrypoint"])
    assert words[:2] == ["sweeper", "run"]
    space = Path(words[2])
    assert "WORKDIR /home/ray/sweeper\n" in (CLUSTER / "Dockerfile").read_text()
    assert (CLUSTER.parent / space.relative_to("/home/ray/sweeper")).exists()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {"--address": "auto", "--store": "s3://BUCKET/sweeper", "--results": MOUNTS[0]["mountPath"]}
