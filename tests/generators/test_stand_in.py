"""Rehearsals: whatever the hub would give, a tiny pipeline takes the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweeper.generators import diffusers

NAMES = ("cat", "dog")


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a {label}", "guidance": 7.5, "steps": 50, "size": 512, "negative_prompt": "blurry"},
        {"prompt": ["a {label}", "{label}"], "strength": 0.3, "scheduler": "DPMSolverMultistep"},
        {"prompt": "a {label}", "steps": 1, "guidance": 0.0, "scheduler": "FlowMatchEulerDiscrete"},
        {"guidance": 4.0, "class_ids": [7, 3]},
        {},
    ],
)
def test_a_pipeline_of_the_hub_is_stood_in_for(given: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = diffusers.Config(model="someone/something", batch_size=2, **given)
    found = diffusers.stand_in(config, tmp_path / "small", len(NAMES))
    starts = [np.zeros((8, 8, 3), np.uint8)] * 2 if config.strength else None
    drawn = diffusers.build(diffusers.Config.model_validate(found.model_dump()), "cpu")
    assert drawn.generate([0, 1], NAMES, [1, 2], starts).shape == (2, 32, 32, 3)


def test_a_pipeline_that_is_here_stays_itself(sd_folder: Path, tmp_path: Path) -> None:
    config = diffusers.Config(model=str(sd_folder), prompt="a {label}")
    assert diffusers.stand_in(config, tmp_path / "small", 2) is config
    assert not (tmp_path / "small").exists()
