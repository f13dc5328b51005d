"""A rehearsal: few trials over the whole space, stand-ins for what is not here, and nothing asked of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sweeper import hub_stand_in, rehearsal, spacefile
from sweeper.errors import InputError
from sweeper.rehearsal import TWICE, covering
from sweeper.spacefile import SpaceFile
from sweeper.trial import TrialConfig

SPACES = Path(__file__).parents[1] / "search_spaces"
FILE = """
name: here
dataset: {kind: image_folder, root: /nowhere/at/all, num_classes: 40, image_size: 32}
teachers:
  big: {kind: timm, model: resnet50, weights: hub, adapt: linear_probe}
  own: {kind: timm, weights: "zoo:cnn", adapt: linear_probe}
pools: {web: {kind: unlabelled_folder, root: /nowhere/either, image_size: 32}}
trial:
  teacher: {choice: [big, own, none]}
  student: {model: test_resnet, init: {choice: [random, pretrained], when: {teacher: none}}}
  loss: {ce: {uniform: [0, 1]}, kl: {weight: {uniform: [0, 2]}}}
  pretrain: {pool: {choice: [none, web]}, teacher: own}
  train: {epochs: 250, batch_size: 64, lr: {loguniform: [1.0e-4, 1.0e-2]}}
search: {trials: 99, gpu_hours: 1000}
finalists: {count: 9, seeds: 5}
resources: {cpus_per_trial: 16}
"""


@pytest.fixture
def space(tmp_path: Path) -> SpaceFile:
    path = tmp_path / "space.yaml"
    path.write_text(FILE)
    return spacefile.load(path)


@pytest.mark.parametrize("path", sorted(SPACES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_few_points_meet_every_value_of_a_space_and_all_of_them_are_points_of_it(path: Path) -> None:
    space = spacefile.load(path).space
    points = covering(space)
    met = [space.point_values(point) for point in points]
    assert len(points) <= 16
    for point in points:
        TrialConfig.model_validate(point)
    for name, domain in space.domains.items():
        for value in domain.representatives():
            times = sum(values.get(name) == value for values in met)
            assert times >= min(TWICE, len(points)), f"{name}: {value!r} was met {times} times"


def test_what_costs_is_cut_and_what_decides_stays(space: SpaceFile, tmp_path: Path) -> None:
    small = rehearsal.reduced(space, tmp_path / "work").space
    config, original = small.config, space.config
    assert small.space.domains.keys() == space.space.domains.keys()
    assert all(small.space.domains[path] == domain for path, domain in space.space.domains.items())
    assert config.teachers.keys() == original.teachers.keys()
    assert config.teachers["own"] == original.teachers["own"], "what is on this disk stays itself"
    assert (config.finalists.count, config.finalists.seeds) == (rehearsal.MOST_FINALISTS, 1)
    assert (config.search.gpu_hours, config.resources.cpus_per_trial) == (None, 1)
    assert config.search.trials == len(config.search.points) > 3
    assert config.trial["train"]["epochs"] == rehearsal.EPOCHS


def test_what_is_not_here_has_a_stand_in_and_is_named(space: SpaceFile, tmp_path: Path) -> None:
    found = rehearsal.reduced(space, tmp_path / "work")
    teacher, dataset = found.space.config.teachers["big"], found.space.config.dataset
    assert teacher.weights == "none"  # type: ignore[attr-defined]
    assert list(teacher.model_args["layers"]) == [1, 1, 1, 1]  # type: ignore[attr-defined]
    assert (dataset.kind, len(dataset.class_names), dataset.image_size) == ("noise", 40, 32)  # type: ignore[attr-defined]
    said = "\n".join(found.stand_ins)
    for what in ("/nowhere/at/all", "40 classes", "/nowhere/either", "teachers.big", "weights of test_resnet"):
        assert what in said


def test_models_that_only_the_hub_knows_are_replaced_or_left_out(tmp_path: Path) -> None:
    tree = yaml.safe_load(FILE)
    tree["teachers"]["big"] = {"kind": "timm", "model": "hf-hub:nobody/nothing"}
    source = {"kind": "diffusers", "model": "nobody/nothing", "prompt": "a {label}", "precision": "fp16"}
    judge = {"kind": "clip_score", "model": "nobody/clip", "min_score": 0.2}
    tree["synthetic"] = {"sd": {**source, "filter": judge}}
    tree["trial"]["synthetic"] = {"source": "sd", "ratio": {"choice": [0, 1]}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    found = rehearsal.reduced(spacefile.load(path), tmp_path / "work")
    config: Any = found.space.config
    assert config.teachers["big"].model == "test_resnet"
    assert Path(config.synthetic["sd"].model, "model_index.json").is_file()
    assert config.synthetic["sd"].precision == ("fp16" if torch.cuda.is_available() else "fp32")
    assert config.synthetic["sd"].filter is None
    said = "\n".join(found.stand_ins)
    for what in ("teachers.big", "synthetic.sd: ", "synthetic.sd.filter: clip_score by nobody/clip is left out"):
        assert what in said


def test_data_that_is_here_is_used_itself(tmp_path: Path) -> None:
    found = rehearsal.reduced(spacefile.load(SPACES / "smoke.yaml"), tmp_path)
    dataset = found.space.config.dataset
    assert (dataset.kind, dataset.of.kind, dataset.train_per_class) == ("subset", "digits", 2)  # type: ignore[attr-defined]
    assert found.stand_ins == []


def test_data_that_is_not_here_needs_its_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(FILE.replace("num_classes: 40, ", ""))
    with pytest.raises(InputError, match=r"/nowhere/at/all.*say `num_classes:` under `dataset:` \(.*space.yaml:3\)"):
        rehearsal.reduced(spacefile.load(path), tmp_path / "work")


def test_leaves_that_others_depend_on_keep_their_domain(tmp_path: Path) -> None:
    tree = yaml.safe_load(FILE)
    tree["trial"]["train"]["epochs"] = {"choice": [2, 3]}
    tree["trial"]["train"]["ema"] = {"choice": [0, 0.9], "when": {"train.epochs": 3}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(tree))
    small = rehearsal.reduced(spacefile.load(path), tmp_path / "work").space
    assert small.space.domains["train.epochs"].options == (2, 3)


def test_timm_loads_the_stand_in_of_pretrained_weights_like_the_hubs(tmp_path: Path) -> None:
    hub_stand_in.lay(tmp_path, "test_resnet")
    code = "import timm; print(timm.create_model('test_resnet', pretrained=True, num_classes=3).num_features)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
