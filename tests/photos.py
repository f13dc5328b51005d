"""Folders of made-up photos, with what such folders have in real life: copies, broken files, pictures in two splits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photo(path: Path, seed: int, width: int = 48, height: int = 40, *, grey: bool = False) -> Path:
    """Smooth noise, of which no two seeds are alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture.convert("L") if grey else picture).save(path)
    return path


def folder_of(root: Path, classes: Mapping[str, int]) -> Path:
    """`<root>/<class>/<number>.png`, so many of each class."""
    numbered = [(name, number) for name, count in classes.items() for number in range(count)]
    for seed, (name, number) in enumerate(numbered):
        photo(root / name / f"{number:03d}.png", seed)
    return root


def copy(source: Path, target: Path) -> None:
    """The same bytes under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
