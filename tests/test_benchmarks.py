"""The scripts under `benchmarks/` run, and tell what they say they tell; how fast anything is, no test asks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
