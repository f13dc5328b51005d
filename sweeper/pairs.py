"""Whether the models that a space names exist, and whether each loss can work between them: asked before any work.

Architectures are made on torch's meta device, where a model has shapes and no weights; the hub is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sweeper import registry
from sweeper.architecture import first_line
from sweeper.config import SweepConfig
from sweeper.errors import InputError, SpaceError
from sweeper.losses import LossContext, MapShape
from sweeper.space import nested
from sweeper.spacefile import SpaceFile
from sweeper.trial import NO_TEACHER, StudentConfig, TrialConfig

if TYPE_CHECKING:
    from sweeper.student import Student

NUM_CLASSES = 2  # stands for any: no shape before the classifier depends on it


def check_models(space: SpaceFile) -> None:
    """Ask for every teacher and student by name, and every loss that has conditions for the pairs that it can meet.

    Raises:
        SpaceError: no such architecture or weights, or a pair that a loss can not work with.
    """
    problems: dict[str, str] = {}
    names = ((_check_teachers, "teachers"), (_check_students, "trial.student.model"))
    pairs = ((_check_pairs, "trial.loss.embedding.kind"),)
    for checks in (names, pairs):
        for check, path in checks:
            for sentence in check(space):
                problems.setdefault(sentence, f"{sentence} ({space.origin(path)})")
        if problems:
            raise SpaceError(list(problems.values()))


def _check_teachers(space: SpaceFile) -> list[str]:
    found = []
    for name, teacher in space.config.teachers.items():
        kind: Any = teacher
        module = registry.load("teachers", kind.kind)
        if hasattr(module, "check"):  # an ensemble has none
            try:
                module.check(teacher)
            except InputError as error:
                found.append(f"teachers.{name}.{error}")
    return found


def _check_students(space: SpaceFile) -> list[str]:
    from sweeper import architecture

    found = []
    for corner in space.space.corners():
        try:
            architecture.check(StudentConfig.model_validate(corner["student"]))
        except InputError as error:
            found.append(str(error))
    return found


def _check_pairs(space: SpaceFile) -> list[str]:
    found = []
    made: dict[tuple[str, str], Any] = {}
    for trial in _pairs(space):
        kind: Any = trial.loss.embedding
        module = registry.load("losses", kind.kind)
        needs_maps = "maps" in module.NEEDS
        if not needs_maps and not hasattr(module, "check"):
            continue
        try:
            context = _context(space.config, trial, needs_maps, made)
            if hasattr(module, "check"):
                module.check(kind, context)
        except InputError as error:
            where = f"loss.embedding.kind: {kind.kind} with teacher {trial.teacher!r} and {trial.student.model!r}"
            found.append(f"trial.{where}: {error}")
    return found


def _pairs(space: SpaceFile) -> list[TrialConfig]:
    """Every combination of teacher, student and loss that can occur; other leaves inside their ranges."""
    points = []
    for paths in (["teacher", "student", "loss.embedding"], ["student", "pretrain"]):
        for values in space.space.joint_finite(paths, interior=True):
            tree = nested(values)
            point = TrialConfig.model_validate({**tree, "loss": {**tree.get("loss", {}), "ce": 1.0}})
            trial = point.pretraining if "pretrain" in paths else point
            if trial is not None and trial.teacher != NO_TEACHER and trial.loss.embedding is not None:
                points.append(trial)
    return points


def _context(
    config: SweepConfig, trial: TrialConfig, needs_maps: bool, made: dict[tuple[str, str], Any]
) -> LossContext:
    """What the loss will know of the pair; `made` keeps the models of earlier pairs."""
    import torch

    from sweeper import student as students

    size = int(config.dataset.image_size)  # type: ignore[attr-defined]

    def model(role: str, name: str, make: Callable[[], Any]) -> Any:
        if (role, name) not in made:
            with torch.device("meta"):
                made[role, name] = make()
        return made[role, name]

    student: Student = model(
        "student",
        trial.student.model_dump_json(),
        lambda: students.build(trial.student.model_copy(update={"init": "random"}), NUM_CLASSES, size, seed=0),
    )
    members = [
        model("teacher", name, partial(_sketch, config.teachers[name])) for name in config.members(trial.teacher)
    ]
    maps: tuple[tuple[MapShape, ...], tuple[MapShape, ...]] = ((), ())
    if needs_maps:
        try:
            shapes = student.tap_points.shapes
        except (AssertionError, RuntimeError, ValueError) as error:  # each architecture has its own way to refuse
            raise InputError(f"the student does not take images of {size} px: {first_line(error)}") from error
        maps = _paired(shapes, members[0].tap_points.shapes)
    return LossContext(
        student_dim=student.embedding_dim,
        teacher_dim=sum(member.embedding_dim for member in members),
        num_classes=NUM_CLASSES,
        num_samples=1,
        pool=_unknown,
        classifier=_unknown,
        student_maps=maps[0],
        teacher_maps=maps[1],
    )


def _sketch(teacher: Any) -> Any:
    return registry.load("teachers", teacher.kind).sketch(teacher, [str(i) for i in range(NUM_CLASSES)])


def _paired(student: tuple[Any, ...], teacher: tuple[Any, ...]) -> tuple[tuple[MapShape, ...], tuple[MapShape, ...]]:
    """The deepest maps that both sides have.

    Raises:
        InputError: one side has none.
    """
    count = min(len(student), len(teacher))
    if not count:
        side = "student" if not student else "teacher"
        raise InputError(f"the {side}'s architecture offers no intermediate maps, which this loss compares")
    return tuple(MapShape(*s) for s in student[-count:]), tuple(MapShape(*t) for t in teacher[-count:])


def _unknown() -> Any:
    raise AssertionError("a loss's check looks at shapes only")
