"""A space file's whole path in little, before money is spent: every stage, the losses, the finalists and the export.

The space keeps its teachers, students, losses, classes and image size. What costs is cut: a handful of images (random
ones where the data is not here), stand-ins with random weights for models of the hub, two short epochs a trial, and as
few trials as meet every option of a choice and both ends of every range twice. Nothing is asked of the network, and
all is written to a folder that goes away.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import ValidationError

from sweeper import hub_stand_in, registry, spacefile
from sweeper.config import SweepConfig
from sweeper.console import Console
from sweeper.datasets import DatasetIndex
from sweeper.domain import Domain
from sweeper.errors import InputError, RunFailed, SweeperError
from sweeper.fingerprint import fingerprint
from sweeper.prepared import Options, prepare
from sweeper.space import Space
from sweeper.spacefile import SpaceFile
from sweeper.trial import TrialConfig

MANY_CLASSES = 32  # of more, one training image each
EVALUATED = 8  # images of val, and of test
POOL = 16
BATCH, EPOCHS = 4, 2
TWICE = 2  # how often each value is tried
CANDIDATES = 400
MOST_FINALISTS = 2
VIEWS = 2
FINE_TUNE_STEPS = 2


@dataclass
class Rehearsal:
    """The space in little, and what in it is not the real thing."""

    space: SpaceFile
    stand_ins: list[str] = field(default_factory=list)


def run(space: SpaceFile, console: Console, address: str | None = None) -> None:
    """Rehearse a space, and say what was proven and what was not.

    Raises:
        InputError: the file's own mistakes, or data that is not here and whose classes are not known.
        RunFailed: a stage or a trial failed, as it would have in the real run.
    """
    from sweeper import driver
    from sweeper.export_model import export_model

    with TemporaryDirectory(prefix="sweeper-rehearsal-") as name, _no_network(Path(name) / "hub"):
        folder = Path(name)
        rehearsal = reduced(space, folder)
        for line in rehearsal.stand_ins:
            console.message(f"rehearsal: {line}", "yellow")
        console.message("rehearsal: accuracies below are those of a handful of images, and say nothing", "yellow")
        where = {"results": str(folder / "results"), "store": str(folder / "store")}
        options = Options(**where, address=address, is_passing=True)
        prepared = prepare(rehearsal.space, options)
        driver.work(prepared, options, console)
        done = prepared.folder
        trials = done.read_trials()
        failed = [trial for trial in trials if trial["state"] == "failed"]
        if failed:
            raise RunFailed(
                f"rehearsal: {len(failed)} of {len(trials)} trials failed; the first is "
                f"{failed[0]['teacher']} > {failed[0]['student']}, {failed[0]['loss']}: {failed[0]['error']}"
            )
        with console.stage("export", 1, "student") as counter:
            export_model(done, 1, folder / "student", prepared.store)
            counter.advance()
    unproven = "; not proven: that what stand-ins stood in for can be read" if rehearsal.stand_ins else ""
    console.message(
        f"rehearsal passed: every stage, {len(trials)} trials over the whole space and the export{unproven}"
    )


def reduced(space: SpaceFile, folder: Path) -> Rehearsal:
    """The space in little, written to `folder` and read again like any other.

    Raises:
        InputError: as `run`.
    """
    config = space.config
    tree = spacefile.resolved(config)
    said: list[str] = []
    tree["dataset"], num_classes = _dataset(space, said)
    tree["pools"] = {name: _pool(pool, config.seed, said) for name, pool in config.pools.items()}
    for family, configs in (("teachers", config.teachers), ("synthetic", config.synthetic)):
        tree[family] = {
            name: _stand_in(family, name, one, folder, num_classes, said).model_dump(mode="json")
            for name, one in configs.items()
        }
    tree["views"]["per_image"] = min(VIEWS, tree["views"]["per_image"])
    tree["trial"] = _short(tree["trial"])
    tree.pop("track", None)
    points = covering(Space(tree["trial"]))
    _pretrained_students(points, folder / "hub", said)
    tree["search"] |= {"trials": len(points), "points": points, "startup": 0, "sampler": "random", "warm_start": []}
    tree["search"] |= dict.fromkeys(("gpu_hours", "wall_hours", "target", "min_gain"))
    tree["finalists"] |= {"count": min(MOST_FINALISTS, config.finalists.count), "seeds": 1}
    tree["resources"] |= {"cpus_per_trial": 1, "workers_per_trial": _workers(config)}
    path = folder / "rehearsal.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Rehearsal(spacefile.load(path), said)


def covering(space: Space) -> list[dict[str, Any]]:
    """Few points that meet every option of a choice and both ends of every range `TWICE`, where conditions let them.

    Greedy over the space's corners and random points of ends: always the one that meets most of what is left.
    """
    rng = random.Random(0)
    candidates: dict[str, tuple[dict[str, Any], set[str]]] = {}
    for point in [*space.corners(), *_ends(space, rng)]:
        try:
            key = fingerprint(TrialConfig.model_validate(point).resolved())
        except ValidationError:  # the ends of several ranges together, which is no point of the space
            continue
        values = space.point_values(point)
        met = {f"{path}={values[path]!r}" for path in space.domains if path in values}
        candidates.setdefault(key, (point, met))
    left = {value: TWICE for _, met in candidates.values() for value in met}
    chosen: list[dict[str, Any]] = []
    while candidates:
        key = max(candidates, key=lambda k: sum(left[value] > 0 for value in candidates[k][1]))
        point, met = candidates.pop(key)
        if chosen and not any(left[value] > 0 for value in met):
            break
        for value in met:
            left[value] -= 1
        chosen.append(point)
    return chosen


def _ends(space: Space, rng: random.Random) -> Iterator[dict[str, Any]]:
    def draw(path: str, domain: Domain) -> Any:
        return rng.choice(domain.representatives())

    for _ in range(CANDIDATES):
        yield space.sample(draw)


def _dataset(space: SpaceFile, said: list[str]) -> tuple[dict[str, Any], int]:
    """The section of the dataset in little, and its number of classes."""
    dataset: Any = space.config.dataset
    found = _index(dataset, space.config.seed)
    if isinstance(found, DatasetIndex):
        few = 1 if len(found.class_names) > MANY_CLASSES else 2
        return _few(dataset, few), len(found.class_names)
    module = registry.load("datasets", dataset.kind)
    known = module.known_classes(dataset) if hasattr(module, "known_classes") else None
    if not known:
        raise InputError(
            f"{found}; a rehearsal can do without the data, but not without its classes: say `num_classes:` under "
            f"`dataset:` ({space.origin('dataset')})"
        )
    names = list(known) if isinstance(known, tuple) else [f"class {number}" for number in range(known)]
    said.append(f"the data is not here ({found}); random images of {len(names)} classes stand in")
    train = len(names) if len(names) > MANY_CLASSES else 2 * len(names)
    sizes = {"train": train, "val": EVALUATED, "test": EVALUATED, "image_size": dataset.image_size}
    return {"kind": "noise", "classes": names, **sizes}, len(names)


def _pool(pool: Any, seed: int, said: list[str]) -> dict[str, Any]:
    """The section of a pool in little."""
    found = _index(pool, seed)
    if isinstance(found, DatasetIndex):
        return _few(pool, POOL)
    said.append(f"a pool is not here ({found}); random images stand in")
    return {"kind": "noise", "classes": 0, "train": POOL, "image_size": pool.image_size}


def _index(dataset: Any, seed: int) -> DatasetIndex | SweeperError:
    """What the data holds, or why it can not be read here; nothing is downloaded."""
    if hasattr(dataset, "download"):
        dataset = dataset.model_copy(update={"download": False})
    try:
        found: DatasetIndex = registry.load("datasets", dataset.kind).index(dataset, seed)
        return found
    except SweeperError as error:
        return error


def _few(dataset: Any, per_class: int) -> dict[str, Any]:
    tree = {"kind": "subset", "of": dataset.model_dump(mode="json"), "train_per_class": per_class}
    return {**tree, "evaluated": EVALUATED}


def _stand_in(family: str, name: str, config: Any, folder: Path, num_classes: int, said: list[str]) -> Any:
    """The section of a model that this machine has, or of a small one in its place; a fine-tune is cut short."""
    if getattr(config, "adapt", None) == "fine_tune":
        config = config.model_copy(update={"fine_tune_steps": FINE_TUNE_STEPS})
    module = registry.load("generators" if family == "synthetic" else family, config.kind)
    judge = getattr(config, "filter", None)
    if judge is not None and not getattr(registry.load("filters", judge.kind), "is_here", lambda _: True)(judge):
        config = config.model_copy(update={"filter": None})
        said.append(f"{family}.{name}.filter: {judge.kind} by {judge.model} is left out")
    if not hasattr(module, "stand_in"):
        return config
    found = module.stand_in(config, folder / f"{family}-{name}", num_classes)
    if found.model != config.model or getattr(found, "weights", None) != getattr(config, "weights", None):
        said.append(f"{family}.{name}: a small {config.model or config.kind} with random weights stands in")
    return found


def _pretrained_students(points: Sequence[Mapping[str, Any]], cache: Path, said: list[str]) -> None:
    """Random weights where the hub's would lie, for students that begin from them."""
    students = [point["student"] for point in points]
    models = sorted({str(s["model"]) for s in students if s.get("init") == "pretrained" and "/" not in s["model"]})
    for model in models:
        hub_stand_in.lay(cache, model)
    if models:
        said.append(f"pre-trained weights of {', '.join(models)}: random ones stand in")


def _short(trial: dict[str, Any]) -> dict[str, Any]:
    """The `trial:` tree with short trainings; what other leaves depend on stays."""
    named = {path for domain in Space(trial).domains.values() for path, _ in domain.when}
    for prefix, section in (("", trial), ("pretrain.", trial.get("pretrain") or {})):
        short = {"epochs": EPOCHS, "epoch_size": BATCH, "batch_size": BATCH}
        kept = {key for key in short if f"{prefix}train.{key}" in named}
        if isinstance(section.get("train"), dict):
            section["train"] |= {key: value for key, value in short.items() if key not in kept}
    return trial


def _workers(config: SweepConfig) -> int:
    return min(config.resources.workers_per_trial, len(os.sched_getaffinity(0)))


@contextmanager
def _no_network(cache: Path) -> Iterator[None]:
    """The hub is `cache` alone, here and in the processes that start from here."""
    changed = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
