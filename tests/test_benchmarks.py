"""The scripts under `benchmarks/` run, and tell what they say they tell; how fast anything is, no test asks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import trial_data
from test_sources import live, teacher_of

from sweeper import data_cache
from sweeper.feeding import BatchStream

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_cached_vs_online(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "2", "--repeats", "1", "--batch-size", "8", "--seeds", "1", "--epochs", "1", "--device", "cpu"]
    script("cached_vs_online").main(["--pairs", "embedded", *small])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    speeds = [found[f"embedded_{way}_images_s"] for way in ("cached", "online", "no_teacher")]
    assert min(speeds) > 0
    assert found["embedded_ratio_online"] == pytest.approx(speeds[0] / speeds[1], abs=1e-3)
    assert found["embedded_ratio_no_teacher"] == pytest.approx(speeds[0] / speeds[2], abs=1e-3)
    assert found["embedded_loss_difference"] < 1e-4
    assert found["accuracy_difference"] == pytest.approx(found["accuracy_cached"] - found["accuracy_online"], abs=2e-4)
    assert any(line.startswith("embedded") for line in lines)


def test_streaming(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_cache, "memory_free", data_cache.memory_free)  # the script changes it, and those below
    for variable in ("SWEEPER_CACHE", "SWEEPER_CACHE_GB"):
        monkeypatch.setenv(variable, "1")
    small = ["--images", "200", "--size", "32", "--student", "test_resnet", "--steps", "2", "--repeats", "1"]
    script("streaming").main(small)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for what in ("feeding", "training"):
        speeds = [found[f"{what}_{way}_images_s"] for way in ("streamed", "held")]
        assert found[f"{what}_ratio"] == pytest.approx(speeds[0] / speeds[1], rel=1e-2)


def test_views(capsys: pytest.CaptureFixture[str]) -> None:
    script("views").main(["--views", "2", "--seeds", "1", "--epochs", "2", "--device", "cpu"])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    for arm in ("views_2", "fixed", "no_teacher"):
        assert 0 <= found[f"{arm}_test"] <= 1
        difference = found[f"{arm}_test"] - found["fresh_test"]
        assert found[f"{arm}_against_fresh"] == pytest.approx(difference, abs=2e-4)
    assert [line.split("|")[1].strip() for line in lines[-5:-1]] == ["views: 2", "fresh", "fixed", "no teacher"]


def test_views_are_those_that_their_arm_says() -> None:
    """Six samples in twelve passes: how many views the student sees of each, and how many targets it hears."""
    module = script("views")
    cached, alone = trial_data(6, taught=True), trial_data(6)
    online = replace(cached, source=live(teacher_of(8)))
    task = module.Task({"cached": cached, "online": online, "no_teacher": alone}, 0, 0)
    counted = {}
    for name, data in module.arms(task, [1, 2, 4]).items():
        stream = BatchStream(data, batch_size=6, seed=0, device=torch.device("cpu"))
        seen, heard = set(), set()
        for batch in stream.batches(0, 6 * 12):
            for row, sample in enumerate(batch.index_B.tolist()):
                seen.add((sample, batch.images_BCHW[row].numpy().tobytes()))
                if batch.teacher is not None and batch.teacher.logits_BK is not None:
                    heard.add((sample, batch.teacher.logits_BK[row].numpy().tobytes()))
        counted[name] = len(seen) / 6, len(heard) / 6
    assert counted == {
        "views_1": (1, 1),
        "views_2": (1, 1),
        "views_4": (3, 3),
        "fresh": (12, 12),
        "fixed": (3, 1),
        "no_teacher": (12, 0),
    }


def test_probe(capsys: pytest.CaptureFixture[str]) -> None:
    script("probe").main(["--samples", "200", "--width", "8", "--classes", "3", "--device", "cpu"])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    for name in ("cnn", "vit", "made_up"):
        assert found[f"{name}_seconds"] > 0
        assert found[f"{name}_accuracy"] >= found[f"{name}_accuracy_sklearn"] - 0.01
        assert found[f"{name}_loss"] <= found[f"{name}_loss_sklearn"] + 0.01
        assert found[f"{name}_agreement"] > 0.95
        assert sum(line.startswith(name) for line in lines) >= 2


def test_objectives_are_those_that_need_no_teacher_in_the_loop() -> None:
    module = script("objectives")
    cached, every = module.kinds(online=False), module.kinds(online=True)
    assert {"kl", "dkd", "simkd", "crd"} <= set(cached)
    assert set(every) - set(cached) >= {"at", "fitnet", "jacobian"}
    arms = [module.Arm(None), module.Arm("crd"), module.Arm("kl", 5.0)]
    assert [arm.name for arm in arms] == ["no teacher", "crd", "kl 5x"]
    tree = module.point_file(arms).config.trial
    points = [module.point(tree, arm) for arm in arms]
    assert [point.loss_name for point in points] == ["ce", "ce+crd", "ce+kl"]
    assert [point.synthetic.ratio for point in points] == [0, 0, 5]
    assert len({point.train.model_dump_json() for point in points}) == 1


def test_objectives_rank_by_test_accuracy_and_show_what_failed() -> None:
    module = script("objectives")
    alone, kl, crd = module.Arm(None), module.Arm("kl"), module.Arm("crd")
    accuracies = [(alone, 1, 0.5), (alone, 2, 0.7), (kl, 1, 0.9), (kl, 2, 0.7)]
    results = [module.Result(arm, seed, val=0.5, test=test, seconds=2.0) for arm, seed, test in accuracies]
    found = module.rows([*results, module.Result(crd, 1, error="ValueError: no")])
    lines = [line for line in module.markdown(found).splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == ["kl", "no teacher", "crd"]
    assert "80.0 ± 14.1" in lines[0]
    assert "ValueError: no" in lines[2]


def test_the_loop_is_held_against_its_own_step_and_the_bare_model(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "1", "--repeats", "1", "--batch-size", "8", "--device", "cpu"]
    script("loop").main(["--students", "test_vit:32", *small])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    speeds = {way: found[f"test_vit_32_{way}_images_s"] for way in ("bound", "step", "loop")}
    assert min(speeds.values()) > 0
    assert found["test_vit_32_fed"] == pytest.approx(speeds["loop"] / speeds["step"], abs=2e-3)
    assert found["test_vit_32_share"] == pytest.approx(speeds["loop"] / speeds["bound"], abs=2e-3)
    assert found["least_fed"] == found["test_vit_32_fed"]
    assert lines[1].startswith("test_vit_32")


def test_lanes_per_gpu_says_that_it_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    module = script("lanes_per_gpu")
    if not module.torch.cuda.is_available():
        assert module.main([]) == module.EXIT_NO_GPU
        assert "needs a GPU" in capsys.readouterr().err
    told = module.figures({1: [100.0, 90.0, 110.0], 4: [300.0, 250.0, 260.0]})
    assert told == {"trials_per_gpu_hour_1": 100, "trials_per_gpu_hour_4": 260, "gain_1": 1, "gain_4": 2.6}


@pytest.mark.slow
def test_lanes_train_side_by_side() -> None:
    small = ["--student", "test_vit", "--steps", "2", "--trials", "1", "--repeats", "1", "--batch-size", "8"]
    command = [sys.executable, str(BENCHMARKS / "lanes_per_gpu.py"), "--lanes", "1", "2", "--device", "cpu", *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trials_per_gpu_hour_2"] > 0
    assert found["gain_1"] == 1
