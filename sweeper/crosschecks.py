"""What no single section of a space file can know: whether its sections fit each other.

Names that are defined elsewhere, what has to be finite because it is built before the search, images that no source
offers, and combinations that train nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sweeper import registry
from sweeper.config import TOGETHER, DatasetConfig, SweepConfig
from sweeper.domain import Domain, is_same, nearest
from sweeper.explain import Problem, model_at
from sweeper.losses import ONLINE
from sweeper.space import Space, TooManyCombinations, set_path
from sweeper.trial import NO_EMBEDDING, NO_POOL, NO_TEACHER, Pretrain, embedding_kinds

FINITE = {
    "teacher": "each teacher is adapted and its targets are cached before the search",
    "pretrain.pool": "the teacher's targets of a pool are cached before the search",
    "pretrain.teacher": "each teacher is adapted and its targets are cached before the search",
    "synthetic.source": "synthetic images are made before the search",
    "synthetic.ratio": "the synthetic images of the largest ratio are made before the search",
}


def problems(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything that is wrong between sections.

    Args:
        space: the `trial:` tree.
        tree: the whole file, whose other sections may be wrong as well.
    """
    try:
        yield from _problems(space, tree)
    except TooManyCombinations as error:
        yield Problem.of("trial", str(error), is_cross=True)


def _problems(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    unlisted = set()
    for path, why in FINITE.items():
        try:
            space.joint_finite([path])
        except ValueError as error:
            unlisted.add(path)
            yield Problem(
                path=f"trial.{path}",
                what=f"has to be a constant or a choice, because {why}",
                hint=str(error),
                is_cross=True,
            )
    if "teacher" not in unlisted:
        teachers = _teacher_names(space, tree)
        yield from _unknown_names(space, "teacher", "teachers", teachers, NO_TEACHER)
        yield from _nothing_to_train(space)
        yield from _in_the_loop(space, tree)
    if not unlisted & {"pretrain.pool", "pretrain.teacher"}:
        yield from _unknown_names(space, "pretrain.pool", "pools", _names(tree.get("pools")), NO_POOL)
        single = _names(tree.get("teachers"))
        yield from _unknown_names(space, "pretrain.teacher", "teachers", single, NO_TEACHER)
        yield from _pretraining(space, tree)
    if not unlisted & {"synthetic.source", "synthetic.ratio"}:
        yield from _unknown_names(space, "synthetic.source", "synthetic", _names(tree.get("synthetic")), None)
        yield from _ratio_problems(space, tree)
    for section in ("loss.embedding", "pretrain.loss.embedding"):
        yield from _settings_without_effect(space, section)
    yield from _costs_of_nobody(space, tree)
    yield from _students_larger_than_images(space, tree)


def _students_larger_than_images(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """A student's own resolution is made from the dataset's, in which images are decoded once."""
    students = [corner["student"] for corner in space.corners() if isinstance(corner.get("student"), Mapping)]
    given = [size for one in students if isinstance(size := one.get("image_size"), int)]
    if not given:
        return
    try:
        largest = int(TypeAdapter(DatasetConfig).validate_python(tree.get("dataset")).image_size)  # type: ignore[attr-defined]
    except ValidationError:  # which is told at the dataset
        return
    if max(given) > largest:
        what = f"students of {max(given)} px cannot be made from the dataset's images of {largest} px"
        hint = f"allowed: up to {largest}, or a larger dataset.image_size"
        yield Problem(path="trial.student.image_size", what=what, hint=hint, is_cross=True)


def _costs_of_nobody(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """`pretrained:` is about students that some trial begins with their pre-trained weights."""
    together = space.joint_finite(["student"], interior=True)
    used = [found["student"] for found in together if isinstance(found.get("student"), Mapping)]
    models = list(dict.fromkeys(str(one.get("model")) for one in used if one.get("init") == "pretrained"))
    costs = tree.get("pretrained")
    for name in costs if isinstance(costs, Mapping) else ():
        if name not in models:
            allowed = ", ".join(models) or "no student has `init: pretrained`"
            hint = f"allowed: {allowed}{nearest(str(name), models)}"
            what = f"no trial begins from pre-trained weights of {name!r}"
            yield Problem(path=f"pretrained.{name}", what=what, hint=hint, is_cross=True)


def _names(section: Any) -> list[str]:
    if not isinstance(section, Mapping):
        return []
    return ["default"] if isinstance(section.get("kind"), str) else list(section)


def _teacher_names(space: Space, tree: Mapping[str, Any]) -> list[str]:
    """Names under `teachers:`, and those joined ones of the space (`cnn+vit`) of different single ones."""
    names = _names(tree.get("teachers"))
    single = {name for name in names if not _is_ensemble(tree, name)}
    joined = [name for name in space.finite("teacher", NO_TEACHER) if isinstance(name, str) and TOGETHER in name]
    parts = {name: name.split(TOGETHER) for name in joined}
    return [*names, *(name for name, of in parts.items() if set(of) <= single and len(set(of)) == len(of))]


def _in_the_loop(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """Losses on what no cache holds need one teacher that can run in the loop, and whole batches for its Jacobian."""
    paths = ["teacher", "loss.embedding.kind", "synthetic.ratio", "synthetic.embedding", "synthetic.weight"]
    weight = space.leaves.get("synthetic.weight")
    is_range = isinstance(weight, Domain) and weight.is_continuous  # its middle may be 1
    said = set()
    for together in space.joint_finite(paths, interior=True):
        kind, teacher = together.get("loss.embedding.kind"), together.get("teacher", NO_TEACHER)
        if not isinstance(kind, str) or kind not in embedding_kinds() or teacher == NO_TEACHER or kind in said:
            continue
        needs = registry.load("losses", kind).NEEDS
        if needs & ONLINE and _is_ensemble(tree, teacher):
            said.add(kind)
            what = f"{kind!r} runs the teacher in the loop, and {teacher!r} is an ensemble, made of cached targets"
            hint = f"add `when: {{teacher: [...]}}` with single teachers, or leave {kind} out"
            yield Problem(path="trial.loss.embedding.kind", what=what, hint=hint, value=kind)
        apart = together.get("synthetic.embedding", "same") != "same" or together.get("synthetic.weight", 1) != 1
        apart |= is_range and "synthetic.weight" in together
        ratio = together.get("synthetic.ratio", 0)
        if "jacobian" in needs and apart and isinstance(ratio, int | float) and ratio > 0:
            said.add(kind)
            what = f"{kind!r} looks at a batch as a whole and can not treat synthetic images apart"
            hint = "needs synthetic.embedding: same and synthetic.weight: 1"
            yield Problem(path="trial.loss.embedding.kind", what=what, hint=hint, value=kind)


def _pretraining(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """What no pool can teach: nothing at all, by labels that it does not have, or an ensemble in the loop."""
    paths = ["pool", "teacher", "loss.kl.weight", "loss.embedding", "loss.embedding.kind", "loss.embedding.weight"]
    said: set[str] = set()
    for together in space.joint_finite([f"pretrain.{path}" for path in paths], interior=True):
        point: dict[str, Any] = {}
        for path, value in together.items():
            if path != "pretrain.loss.embedding" or not isinstance(value, Mapping):
                set_path(point, path, value)
        try:
            first = Pretrain.model_validate(point.get("pretrain", {}))
        except ValidationError:  # the corners say what is wrong
            continue
        loss: Any = first.loss.embedding
        kind = str(loss.kind) if loss is not None and loss.weight > 0 else NO_EMBEDDING
        if first.pool == NO_POOL or kind in said:
            continue
        needs = registry.load("losses", kind).NEEDS if kind != NO_EMBEDDING else frozenset()
        what = ""
        if kind == NO_EMBEDDING and first.loss.kl.weight == 0:
            what = f"with pool {first.pool!r}, kl.weight 0 and no embedding loss there is nothing to train on"
        elif "labels" in needs:
            what = f"{kind!r} reads labels, and a pool has none"
        elif needs & ONLINE and _is_ensemble(tree, first.teacher):
            what = (
                f"{kind!r} runs the teacher in the loop, and {first.teacher!r} is an ensemble, made of cached targets"
            )
        if what:
            said.add(kind)
            path = "trial.pretrain.loss.embedding.kind" if kind != NO_EMBEDDING else "trial.pretrain.loss"
            yield Problem(path=path, what=what, value=kind, is_cross=kind == NO_EMBEDDING)


def _is_ensemble(tree: Mapping[str, Any], teacher: Any) -> bool:
    teachers = tree.get("teachers")
    section = teachers.get(teacher) if isinstance(teachers, Mapping) and isinstance(teacher, str) else None
    return TOGETHER in str(teacher) or (isinstance(section, Mapping) and section.get("kind") == "ensemble")


def _unknown_names(space: Space, path: str, section: str, names: list[str], nobody: str | None) -> Iterator[Problem]:
    allowed = [*names, *([nobody] if nobody else [])]
    for value in space.finite(path, nobody):
        if isinstance(value, str) and value not in allowed:
            hint = f"allowed: {', '.join(allowed)}" if allowed else f"`{section}:` has none"
            what = f"{value!r} is not named under {section}{nearest(value, allowed)}"
            yield Problem(path=f"trial.{path}", what=what, hint=hint, value=value)


def _ratio_problems(space: Space, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """More images than a source offers, or images from nowhere. What is no number is reported by the corners."""
    sources = _names(tree.get("synthetic"))
    path = "trial.synthetic.ratio"
    for together in space.joint_finite(["synthetic.source", "synthetic.ratio"]):
        ratio, source = together.get("synthetic.ratio", 0), together.get("synthetic.source")
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
            continue
        if source is None:
            hint = (
                f"give trial.synthetic.source one of: {', '.join(sources)}" if sources else "name one under synthetic:"
            )
            yield Problem(path=path, what=f"{ratio:g} needs a source of images", hint=hint, value=ratio)
            return
        largest = _max_ratio(tree, source) if isinstance(source, str) and source in sources else None
        if largest is not None and ratio > largest:
            what = f"{ratio:g} is more than synthetic.{source}.max_ratio, which is {largest:g}"
            yield Problem(path=path, what=what, hint="raise max_ratio or lower the ratio", value=ratio)


def _max_ratio(tree: Mapping[str, Any], source: str) -> float | None:
    """Of one source, whatever may be wrong elsewhere in the file."""
    cls = model_at(SweepConfig, ["synthetic", source], tree)
    section = tree["synthetic"].get(source, tree["synthetic"])
    try:
        return getattr(cls.model_validate(section), "max_ratio", None) if cls is not None else None
    except ValidationError:
        return None


def _settings_without_effect(space: Space, section: str) -> Iterator[Problem]:
    """A setting that no loss beside it has: a trial leaves out other kinds' settings without a word."""
    known = embedding_kinds()
    for path in space.leaves:
        name = path.removeprefix(f"{section}.")
        if name in ("kind", path) or "." in name:
            continue
        together = [c for c in space.joint_finite([f"{section}.kind", path], interior=True) if path in c]
        kinds = [kind for kind in known if any(c.get(f"{section}.kind") == kind for c in together)]
        having = [kind for kind in known if name in registry.config_class("losses", kind).model_fields]
        if kinds and having and not set(kinds) & set(having):
            what = f"{name!r} is not a setting of {' or '.join(kinds)}"
            yield Problem(
                path=f"trial.{path}", what=what, hint=f"{', '.join(having)} {'has' if len(having) == 1 else 'have'} it"
            )


def _nothing_to_train(space: Space) -> Iterator[Problem]:
    """A teacher with every weight at 0: three choices together, which no corner need show."""
    weights = {"loss.ce": 1.0, "loss.kl.weight": 0.0, "loss.embedding.kind": NO_EMBEDDING}
    for together in space.joint_finite(["teacher", *weights, "loss.embedding"], interior=True):
        teacher = together.get("teacher", NO_TEACHER)
        ce, kl, embedding = (together.get(path, default) for path, default in weights.items())
        if isinstance(whole := together.get("loss.embedding"), str):
            embedding = whole
        if teacher != NO_TEACHER and embedding == NO_EMBEDDING and is_same(ce, 0) and is_same(kl, 0):
            what = f"with teacher {teacher!r}, ce 0, kl.weight 0 and no embedding loss there is nothing to train on"
            yield Problem(path="trial.loss", what=what, hint="add `when:` or leave the zeros out", is_cross=True)
            return
