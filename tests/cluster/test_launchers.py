"""What is true of every cluster file: Ray accepts it, `sweeper plan` reads it, and all set up the same nodes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from sweeper import cluster_file, place
from sweeper.config import ResourceConfig

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
LAUNCHERS = ["aws", "gcp", "onprem"]
OWN = {
    "aws": {"head_setup_commands": " boto3"},  # what the head's autoscaler imports
    "gcp": {"head_setup_commands": " google-api-python-client"},
    "onprem": {"head_start_ray_commands": " export RAY_enable_autoscaler_v2=0;"},
}
SAME = [
    "file_mounts",
    "rsync_exclude",
    "cluster_synced_files",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return found


def pinned(text: str) -> Requirement:
    """Ray with its extras and version, as an install command names it."""
    (found,) = re.findall(r'"(ray\[[^"]+)"', text)
    return Requirement(found)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_completes_the_file_and_accepts_it_but_no_typo(name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config(name))
    validate_config(prepared)
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["max_workers"] == (2 if name == "onprem" else 0)  # on-premises all machines are of one type
    assert "pip install" in prepared["head_setup_commands"][-2]
    with pytest.raises(ValidationError):
        validate_config(prepare_config(config(name) | {"idle_timeout_minuets": 10}))


@pytest.mark.parametrize(
    ("name", "totals", "device", "workers"),
    [
        ("aws", {"CPU": 36.0, "GPU": 8.0}, "A10G", "8 x gpu_a10g"),
        ("gcp", {"CPU": 36.0, "GPU": 8.0}, "L4", "8 x gpu_l4"),
        ("onprem", {"CPU": 24.0, "GPU": 2.0}, "L4", "2 x worker"),
    ],
)
def test_a_plan_knows_the_size_of_the_cluster_and_guesses_no_price(
    name: str, totals: dict[str, float], device: str, workers: str
) -> None:
    found = cluster_file.read(CLUSTER / f"{name}.yaml")
    assert (found.totals, found.device, found.price(1, 1)) == (totals, device, None)
    where = place.on_cluster(found, ResourceConfig())
    assert where.name == f"{name}.yaml ({workers})"
    assert (where.num_devices, where.slot.device) == (totals["GPU"], device)


@pytest.mark.parametrize("name", LAUNCHERS[1:])
def test_all_clusters_set_up_their_nodes_alike(name: str) -> None:
    """Same project, token, environment, lock and start, but for what the provider's autoscaler imports and can do."""
    ours, model = (
        {key: " ".join(map(str, found[key])) if "commands" in key else found[key] for key in SAME}
        for found in (config(name), config("aws"))
    )
    for key, part in OWN[name].items():
        assert part in ours[key]
        ours[key] = ours[key].replace(part, "")
    for key, part in OWN["aws"].items():
        model[key] = model[key].replace(part, "")
    assert ours == model


def test_every_way_installs_the_ray_that_the_project_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    files = [*(f"{name}.yaml" for name in LAUNCHERS), "Dockerfile", "slurm.sh"]
    pins = [pinned((CLUSTER / name).read_text()) for name in files]
    assert len(set(map(str, pins))) == 1
    (version,) = pins[0].specifier
    assert version.operator == "=="
    assert allowed.specifier.contains(version.version)
    assert pins[0].extras == allowed.extras


@pytest.mark.parametrize("path", [*sorted(CLUSTER.glob("*.yaml")), CLUSTER / "slurm.sh"], ids=lambda path: path.name)
def test_every_file_opens_with_how_to_start_it_what_it_starts_and_how_to_stop_it(path: Path) -> None:
    opening = re.split(r"\n(?!#)", path.read_text())[0]
    assert {"start", "stop"} <= set(re.findall(r"^#   (\w+) ", opening, re.MULTILINE))
    assert "It starts " in opening
    assert str(path.relative_to(REPOSITORY)) in opening
