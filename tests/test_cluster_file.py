"""Ray's cluster files as `sweeper plan --cluster` reads them: size and price, and Ray accepts what is written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper import cluster_file, devices, place
from sweeper.config import ResourceConfig
from sweeper.errors import InputError

AWS = Path(__file__).parents[1] / "cluster" / "aws.yaml"
FILE: dict[str, Any] = {
    "cluster_name": "t",
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"node_config": {}, "resources": {"CPU": 4}},
        "big": {"node_config": {}, "resources": {"CPU": 16, "GPU": 4}, "max_workers": 2},
        "small": {"node_config": {}, "resources": {"CPU": 8, "GPU": 1}},
    },
    "metadata": {
        "sweeper": {
            "head": {"price_per_hour": 0.5},
            "big": {"gpu": "A100", "price_per_hour": 8.0},
            "small": {"gpu": "A100", "price_per_hour": 3.0},
        }
    },
}


def written(folder: Path, file: dict[str, Any] = FILE, **changes: Any) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({**file, **changes}, sort_keys=False))
    return path


def test_workers_fill_the_cluster_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = cluster_file.read(written(tmp_path))
    assert [(node.name, node.count) for node in found.workers] == [("big", 2), ("small", 3)]
    assert found.totals == {"CPU": 4 + 2 * 16 + 3 * 8, "GPU": 2 * 4 + 3 * 1}
    assert found.device == "A100"


def test_a_slots_price_is_the_workers_shared_by_what_they_hold(tmp_path: Path) -> None:
    found = cluster_file.read(written(tmp_path))
    assert found.price(1, 1) == pytest.approx((2 * 8 + 3 * 3) / (2 * 4 + 3 * 1))
    assert found.price(8, 1) == pytest.approx((2 * 8 + 3 * 3) / (2 * 2 + 3 * 1))  # CPUs are what runs out
    where = place.on_cluster(found, ResourceConfig(gpus_per_trial=0.5))
    assert where.price == pytest.approx((2 * 8 + 3 * 3) / (2 * 8 + 3 * 2))
    assert where.head_price == 0.5
    assert place.on_cluster(found, ResourceConfig(), price=1.2).price == 1.2
    assert where.slot == devices.slot("A100", is_here=False)
    assert where.name == "cluster.yaml (2 x big and 3 x small)"


def test_a_missing_price_is_not_guessed(tmp_path: Path) -> None:
    prices = {**FILE["metadata"]["sweeper"], "small": {"gpu": "A100", "price_per_hour": None}}
    assert cluster_file.read(written(tmp_path, metadata={"sweeper": prices})).price(1, 1) is None
    assert cluster_file.read(written(tmp_path, metadata={})).price(1, 1) is None


def test_a_head_alone_is_a_cluster(tmp_path: Path) -> None:
    found = cluster_file.read(written(tmp_path, max_workers=0))
    assert (found.workers, found.device, found.totals) == ((), "cpu", {"CPU": 4.0, "GPU": 0.0})
    assert found.price(2, 0) == pytest.approx(0.25)
    assert place.on_cluster(found, ResourceConfig()).head_price is None  # it is paid as a slot already


def test_the_files_own_cluster_is_read_and_has_no_price_yet() -> None:
    found = cluster_file.read(AWS)
    assert found.totals == {"CPU": 36.0, "GPU": 8.0}
    assert found.device == "A10G"
    assert found.price(1, 1) is None


LOCAL: dict[str, Any] = {
    "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
    "metadata": {
        "sweeper": {
            "head": {"resources": {"CPU": 4}, "price_per_hour": 0.1},
            "worker": {"resources": {"CPU": 8, "GPU": 2}, "gpu": "L4", "price_per_hour": 1.0},
        }
    },
}


def test_machines_of_ones_own_are_as_many_as_their_addresses(tmp_path: Path) -> None:
    found = cluster_file.read(written(tmp_path, LOCAL))
    assert [(node.name, node.count) for node in found.workers] == [("worker", 2)]
    assert (found.totals, found.device) == ({"CPU": 4.0 + 2 * 8, "GPU": 2 * 2.0}, "L4")
    assert (found.price(1, 1), found.head.price) == (pytest.approx(0.5), 0.1)
    assert cluster_file.read(written(tmp_path, LOCAL, max_workers=1)).workers[0].count == 1
    assert cluster_file.read(written(tmp_path, LOCAL, max_workers=9)).workers[0].count == 2  # Ray's own bound


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metadata": {}}, "metadata.sweeper.head.resources: is missing; say what a node has"),
        ({"metadata": {"sweeper": {"wroker": {}}}}, "metadata.sweeper: 'wroker' is none of head, worker"),
        (
            {"metadata": {"sweeper": {"head": {"resources": {"CPU": "many"}}}}},
            "metadata.sweeper.head.resources.CPU: 'many'; allowed: a number",
        ),
        ({"provider": {"type": "local", "head_ip": "a"}}, "provider.worker_ips: None; allowed: a list of addresses"),
    ],
)
def test_a_mistake_in_a_list_of_machines_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = written(tmp_path, LOCAL, **changes)
    with pytest.raises(InputError) as caught:
        cluster_file.read(path)
    assert str(caught.value).startswith(f"--cluster {path}: ")
    assert expected in str(caught.value)


def test_ray_accepts_prices_where_they_stand() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    config = yaml.safe_load(AWS.read_text())
    config["metadata"]["sweeper"]["gpu_a10g"]["price_per_hour"] = 1.25
    validate_config(config)
    with pytest.raises(ValidationError):  # elsewhere it would not
        validate_config(config | {"price_per_hour": 1.25})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"available_node_types": None}, "available_node_types: has to be a mapping"),
        ({"head_node_type": "haed"}, "head_node_type: 'haed'; allowed: head, big, small"),
        ({"max_workers": "many"}, "max_workers: 'many'; allowed: a number, 0 or more"),
        ({"max_workers": -1}, "max_workers: -1; allowed"),
        (
            {"available_node_types": {"head": {"node_config": {}}}, "metadata": {}},
            "available_node_types.head.resources: is missing; say what a node has, such as {CPU: 4, GPU: 1}",
        ),
        ({"metadata": {"sweeper": {"bgi": {}}}}, "metadata.sweeper: 'bgi' is none of head, big, small"),
        ({"metadata": {"sweeper": {"big": {"price": 1}}}}, "'price' is not known; allowed: gpu, price_per_hour"),
        ({"metadata": {"sweeper": {"big": {"price_per_hour": "1 $"}}}}, "big.price_per_hour: '1 $'; allowed: a number"),
        ({"metadata": {"sweeper": {"big": {"price_per_hour": float("nan")}}}}, "price_per_hour: nan; allowed"),
        ({"metadata": {"sweeper": 3}}, "metadata.sweeper: has to be a mapping"),
    ],
)
def test_a_mistake_in_it_is_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        cluster_file.read(path)
    assert str(caught.value).startswith(f"--cluster {path}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"- 1"])
def test_what_is_no_cluster_file_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="--cluster"):
        cluster_file.read(path)
    with pytest.raises(InputError, match="can not be read"):
        cluster_file.read(tmp_path / "nowhere.yaml")
