"""A sweep that is small in everything, for the tests of the stages, the lanes and the search."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from sweeper import artifacts, spacefile
from sweeper.config import SweepConfig
from sweeper.datasets import digits
from sweeper.plan import Plan, make_plan
from sweeper.space import Space
from sweeper.store import Record, Store
from sweeper.sweep import data_refs
from sweeper.trial import TrialConfig
from sweeper.worker import Job

SIZE = 16
SEED = 0


def space_tree(generator: Path, **sections: Any) -> dict[str, Any]:
    """The file as a tree: two random teachers, a random generator, every loss; `sections` replace those of its top."""
    tree: dict[str, Any] = {
        "name": "small",
        "seed": SEED,
        "dataset": {"kind": "digits", "train_per_class": 2, "image_size": SIZE},
        "views": {"per_image": 3, "crop_scale": [0.5, 1.0], "flip": True},
        "teachers": {
            "cnn": {"kind": "timm", "model": "test_resnet", "weights": "none", "adapt": "linear_probe"},
            "vit": {"kind": "timm", "model": "test_vit", "weights": "none", "adapt": "linear_probe", "input_size": 16},
        },
        "synthetic": {"tiny": {"kind": "diffusers", "model": str(generator), "steps": 1, "max_ratio": 2}},
        "trial": {
            "teacher": {"choice": ["cnn", "vit", "none"]},
            "student": {"model": {"choice": ["test_efficientnet", "test_vit"]}, "init": "random"},
            "synthetic": {"source": "tiny", "ratio": {"choice": [0, 1]}, "labels": "distill_only"},
            "loss": {
                "ce": 0.5,
                "kl": {"weight": 1.0, "temperature": {"loguniform": [1, 8]}},
                "embedding": {"kind": {"choice": ["none", "align_uniform", "kdep", "info_nce"]}, "weight": 1.0},
            },
            "train": {"epochs": 4, "batch_size": 32, "epoch_size": 96, "lr": {"loguniform": [1.0e-3, 1.0e-2]}},
        },
        "search": {"trials": 6, "sampler": "random", "scheduler": {"kind": "asha", "grace": 1, "reduction": 2}},
        "finalists": {"count": 1, "seeds": 2},
    }
    return {**tree, **sections}


def write_space(path: Path, generator: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(space_tree(generator, **sections), sort_keys=False))
    return path


def make(tree: Mapping[str, Any], folder: Path, store: Store) -> tuple[SweepConfig, Space, Plan]:
    """Read a tree as a space file, and plan it."""
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    space = spacefile.load(path, ())
    index = digits.index(space.config.dataset, space.config.seed)  # type: ignore[arg-type]
    return space.config, space.space, make_plan(space.config, space.space, index, store)


@dataclass
class Counted:
    """A stage as the artifacts' builder sees it, counting."""

    name: str
    total: int
    unit: str
    done: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def advance(self, count: int = 1, size: int = 0, /, *, is_new: bool = True) -> None:
        self.done += count
        self.bytes += size

    def spend(self, seconds: float, device: str) -> None:
        self.seconds += seconds


class Stages:
    """Opens stages and remembers them."""

    def __init__(self) -> None:
        self.opened: list[Counted] = []

    @contextmanager
    def __call__(self, name: str, total: int, unit: str) -> Iterator[Counted]:
        counted = Counted(name, total, unit)
        self.opened.append(counted)
        yield counted


@dataclass(frozen=True)
class Built:
    """The small sweep with all of its artifacts in a store."""

    generator: Path
    config: SweepConfig
    space: Space
    plan: Plan
    store: Store
    records: Mapping[str, Record]
    stages: Stages

    def job(self, trial: Mapping[str, Any], *, seed: int = 1, final: bool = False) -> Job:
        """The job of one training, from a part of a trial's section; the rest are defaults."""
        config = TrialConfig.model_validate(trial)
        refs = data_refs(self.plan, config)
        return Job(config=dict(trial), refs=refs, views=self.config.views, view_seed=SEED, seed=seed, final=final)


def build(tree: Mapping[str, Any], folder: Path, generator: Path) -> Built:
    """Build everything that a tree asks for, in a store of its own. Needs Ray."""
    store = Store(str(folder / "store"))
    config, space, plan = make(tree, folder, store)
    stages = Stages()
    return Built(generator, config, space, plan, store, artifacts.build(plan, store, stages), stages)


def build_once(folder: Path, generator: Path) -> Built:
    """The small sweep in a folder that several processes share: the first one builds it and the others read it."""
    folder.mkdir(exist_ok=True)
    stages = folder / "stages.pickle"
    with FileLock(folder / "lock"):
        found = build(space_tree(generator), folder, generator)  # what is in the store is not built again
        if not stages.exists():
            stages.write_bytes(pickle.dumps(found.stages))
    return replace(found, stages=pickle.loads(stages.read_bytes()))
