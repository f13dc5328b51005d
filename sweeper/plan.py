"""What a space can ask for: every artifact, deduplicated and keyed by its content, before anything is built.

Keys chain: targets name the teacher's and the images' keys, these name the dataset's content, so that a change anywhere
up the line makes new keys below it and nothing else does. Nothing here builds or needs Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper import registry
from sweeper.config import SweepConfig
from sweeper.datasets import DatasetIndex
from sweeper.fingerprint import fingerprint
from sweeper.ledger import ArtifactUse, Charge
from sweeper.losses import COLUMNS
from sweeper.space import Space, nested
from sweeper.store import Record, Store
from sweeper.trial import TrialConfig

# What changes the bytes of an artifact without any setting changing: raised when such code does.
FORMAT = {"images": 3, "synthetic": 3, "adapt": 4, "targets": 4}


@dataclass(frozen=True)
class Artifact:
    """Something to be built once: its content key, what it is, and how many images it is made of."""

    key: str
    kind: str  # images | adapt | synthetic | targets
    spec: Mapping[str, Any]
    name: str  # for people: the teacher's or source's name in the file
    units: int
    dependencies: tuple[str, ...] = ()


def artifact(kind: str, spec: Mapping[str, Any], name: str, units: int, dependencies: Iterable[str] = ()) -> Artifact:
    """An artifact keyed by the fingerprint of its kind and spec."""
    return Artifact(
        fingerprint({"format": FORMAT[kind], "kind": kind, **spec}), kind, spec, name, units, tuple(dependencies)
    )


@dataclass(frozen=True)
class Use:
    """One artifact that a trial uses, and the share of it in [0, 1]."""

    artifact: Artifact
    share: float


@dataclass(frozen=True)
class Plan:
    """All artifacts of a sweep. `synthetic` and `targets` hold one artifact for each index range of a source."""

    config: SweepConfig
    index: DatasetIndex
    images: Artifact
    adapt: Mapping[str, Artifact]  # by teacher
    synthetic: Mapping[str, tuple[Artifact, ...]]  # by source, ranges in order
    targets: Mapping[tuple[str, str], Artifact]  # by (teacher, key of the image set)
    pools: Mapping[str, Artifact] = field(default_factory=dict)  # unlabelled images, by name
    pool_indexes: Mapping[str, DatasetIndex] = field(default_factory=dict)

    @property
    def num_train(self) -> int:
        """Real training images."""
        return self.index.split_counts()["train"]

    def artifacts(self) -> list[Artifact]:
        """In the order in which they can be built."""
        ranges = [part for parts in self.synthetic.values() for part in parts]
        pools = {item.key: item for item in self.pools.values()}  # two of equal content are one
        return [self.images, *pools.values(), *self.adapt.values(), *ranges, *self.targets.values()]

    def missing(self, store: Store) -> list[Artifact]:
        """Those that the store does not hold."""
        return [item for item in self.artifacts() if store.get(item.key) is None]

    def num_synthetic(self, trial: TrialConfig) -> int:
        """Generated images that a trial trains on."""
        return round(trial.synthetic.ratio * self.num_train) if trial.synthetic.source else 0

    def image_sets(self, trial: TrialConfig) -> list[Use]:
        """The real images and the ranges of its source that a trial reads, with the share of each that it uses."""
        sets = [Use(self.images, 1.0)]
        left = self.num_synthetic(trial)
        for part in self.synthetic.get(trial.synthetic.source or "", ()):
            if left <= 0:
                break
            sets.append(Use(part, min(1.0, left / part.units)))
            left -= part.units
        return sets

    def uses(self, trial: TrialConfig) -> list[Use]:
        """Everything that a trial would have had to build from nothing, apart from decoding its own images."""
        sets = self.image_sets(trial)
        first = trial.pretraining
        heard = [(trial, sets)]
        if first is not None:
            heard.append((first, [Use(self.pools[trial.pretrain.pool], 1.0)]))
        adapted: list[Use] = []
        targets: list[Use] = []
        for one, seen in heard:
            for member in self.config.members(one.teacher):
                adapted.append(Use(self.adapt[member], 1.0))
                if not one.is_online:
                    targets += [Use(self.targets[member, use.artifact.key], use.share) for use in seen]
        judge = _judge(self.config, trial.synthetic.source) if len(sets) > 1 else None
        adapted += [Use(self.adapt[judge], 1.0)] if judge is not None else []
        once = {use.artifact.key: use for use in adapted}
        return [*once.values(), *sets[1:], *targets]


def make_plan(
    config: SweepConfig,
    space: Space,
    index: DatasetIndex,
    store: Store,
    pool_indexes: Mapping[str, DatasetIndex] | None = None,
) -> Plan:
    """Plan a sweep: which teachers and how many images of each source any point of the space can ask for.

    The store is only asked which index ranges of a source exist already: those are used, and a new range begins where
    they end.
    """
    images = _images(config, index)
    num_train = index.split_counts()["train"]
    points = _points(space)
    ratios: dict[str, float] = {}
    for point in points:
        if point.synthetic.source and point.synthetic.ratio > 0:
            source = point.synthetic.source
            ratios[source] = max(ratios.get(source, 0.0), point.synthetic.ratio)
    synthetic = {
        source: tuple(_ranges(config, source, index, round(ratio * num_train), store, images))
        for source, ratio in sorted(ratios.items())
    }
    asked = {point.pretrain.pool for point in points if point.pretraining}
    indexes = {name: found for name, found in (pool_indexes or {}).items() if name in asked}
    pools = {name: _pool(config, name, found) for name, found in indexes.items()}

    needed: dict[str, dict[str, set[str]]] = {}  # by teacher, then by key of the image set
    for point in points:
        sources = [images, *synthetic.get(point.synthetic.source or "", ())]
        heard = [(point, sources)]
        if point.pretraining is not None:
            heard.append((point.pretraining, [pools[point.pretrain.pool]]))
        for one, seen in heard:
            for member in config.members(one.teacher):
                sets = needed.setdefault(member, {})
                for part in seen:
                    sets.setdefault(part.key, set()).update(() if one.is_online else one.needs & COLUMNS)
    asked_by = {_judge(config, source) for source in synthetic}
    teachers = [name for name in config.teachers if name in needed or name in asked_by]
    adapt = {name: _adapt(config, name, index, images) for name in teachers}
    targets: dict[tuple[str, str], Artifact] = {}
    trained = {pools[name].key: found.split_counts()["train"] for name, found in indexes.items()}
    trained[images.key] = num_train
    for part in (images, *(part for parts in synthetic.values() for part in parts), *pools.values()):
        for teacher in teachers:
            if columns := needed.get(teacher, {}).get(part.key):
                units = trained.get(part.key, part.units)
                targets[teacher, part.key] = _targets(config, teacher, adapt[teacher], part, units, columns, store)
    ordered = {pair: targets[pair] for name in teachers for pair in targets if pair[0] == name}
    return Plan(config, index, images, adapt, synthetic, ordered, pools, indexes)


def _points(space: Space) -> list[TrialConfig]:
    """Every combination of what decides which artifacts a trial reads, resolved, other leaves inside their ranges."""
    terms = ["loss.kl.weight", "loss.embedding.kind", "loss.embedding.weight"]
    paths = [
        "teacher",
        "synthetic",
        *terms,
        "pretrain.pool",
        "pretrain.teacher",
        *(f"pretrain.{path}" for path in terms),
    ]
    found = []
    for values in space.joint_finite(paths, interior=True):
        kept = {
            path: value
            for path, value in values.items()
            if not path.endswith("embedding.weight") or path.replace("weight", "kind") in values
        }
        found.append(TrialConfig.model_validate({"student": {"model": "any"}, **nested(kept)}).resolved())
    return found


def _images(config: SweepConfig, index: DatasetIndex) -> Artifact:
    size = config.dataset.image_size  # type: ignore[attr-defined]
    spec = {"content": index.content, "image_size": size, "class_names": list(index.class_names)}
    return artifact("images", spec, config.name, len(index))


def _pool(config: SweepConfig, name: str, index: DatasetIndex) -> Artifact:
    size = config.pools[name].image_size  # type: ignore[attr-defined]
    return artifact("images", {"content": index.content, "image_size": size, "class_names": []}, name, len(index))


def _identity(family: str, config: Any) -> dict[str, Any]:
    found: dict[str, Any] = registry.load(family, config.kind).identity(config)
    return found


def _adapt(config: SweepConfig, name: str, index: DatasetIndex, images: Artifact) -> Artifact:
    teacher: Any = config.teachers[name]
    spec = {"teacher": _identity("teachers", teacher), "images": images.key, "seed": config.seed}
    if teacher.adapt == "fine_tune":  # on views by their law; a probe is fitted on the canonical ones
        spec["views"] = config.views.model_dump(mode="json", exclude={"per_image", "match"})
    return artifact("adapt", spec, name, index.split_counts()["train"], [images.key])


def _judge(config: SweepConfig, source: str | None) -> str | None:
    """The teacher that a source's filter asks."""
    generator: Any = config.synthetic.get(source or "")
    return getattr(getattr(generator, "filter", None), "teacher", None)


def _ranges(
    config: SweepConfig, source: str, index: DatasetIndex, wanted: int, store: Store, images: Artifact
) -> Iterable[Artifact]:
    """Index ranges [start, stop) of every class that together hold `wanted` images."""
    generator: Any = config.synthetic[source]
    kind = registry.load("generators", generator.kind)
    num_classes = len(index.class_names)
    base = {
        "generator": kind.identity(generator),
        "class_names": list(index.class_names),
        "seed": config.seed,
        "image_size": config.dataset.image_size,  # type: ignore[attr-defined]
    }
    base |= kind.wording(generator, index.class_names) if hasattr(kind, "wording") else {}
    dependencies = []
    if hasattr(kind, "starts_from_images") and kind.starts_from_images(generator):
        base["images"] = images.key
        dependencies.append(images.key)
    if generator.filter is not None:
        base["filter"] = _identity("filters", generator.filter)
        if (judge := _judge(config, source)) is not None:
            adapt = _adapt(config, judge, index, images)
            base["filter"]["adapt"] = adapt.key
            dependencies.append(adapt.key)
    base["base"] = fingerprint(base)
    need = math.ceil(wanted / num_classes)
    start = 0
    found = [record.spec for record in store.find("synthetic", base=base["base"])]
    while start < need:
        stop = max((spec["stop"] for spec in found if spec["start"] == start), default=need)
        units = (stop - start) * num_classes
        yield artifact("synthetic", {**base, "start": start, "stop": stop}, source, units, dependencies)
        start = stop


def _targets(
    config: SweepConfig, teacher: str, adapt: Artifact, part: Artifact, units: int, columns: set[str], store: Store
) -> Artifact:
    """Exactly the columns that the space can need, or an artifact of the store that holds them and others."""
    views = config.views.model_dump(mode="json", exclude={"match"})  # whose targets are read, not which there are
    base = {"adapt": adapt.key, "images": part.key, "views": views, "seed": config.seed}
    base["base"] = fingerprint(base)
    held = [record.spec["columns"] for record in store.find("targets", base=base["base"])]
    enough = sorted((c for c in held if columns <= set(c)), key=lambda c: (len(c), c))
    chosen = enough[0] if enough else sorted(columns)
    spec = {**base, "columns": chosen}
    return artifact("targets", spec, teacher, units * config.views.per_image, [adapt.key, part.key])


def artifact_uses(plan: Plan, trial: TrialConfig, records: Mapping[str, Record]) -> dict[str, ArtifactUse]:
    """What the ledger charges a trial for: stage, measured device-seconds and share of each artifact that it used."""
    found = {}
    for use in plan.uses(trial):
        charge = records[use.artifact.key].charge
        if charge is not None:
            found[use.artifact.key] = ArtifactUse(charge.stage, charge.seconds, use.share)
    return found


def charges(records: Iterable[Record]) -> list[Charge]:
    """The measured device time of artifacts."""
    return [record.charge for record in records if record.charge is not None]
