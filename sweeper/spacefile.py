"""Reads a space file into `SweepConfig` and `Space`, or says everything that is wrong with it at once.

Every branch of the space is validated here, as points that exercise it (`Space.corners`), so that a typo in a
conditional branch costs a second and not a night. Nothing is written and nothing heavy is imported.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sweeper import crosschecks, points
from sweeper.conditions import ABSENT, owner_of
from sweeper.config import SweepConfig
from sweeper.domain import Domain, is_same
from sweeper.domain_forms import parse_domain
from sweeper.errors import InputError, SpaceError
from sweeper.explain import Problem, booleans_as_numbers, explain, model_at
from sweeper.located_yaml import Document
from sweeper.space import InvalidSpace, Space, TooManyCombinations, get_path
from sweeper.trial import TrialConfig

MAX_LINES = 100


@dataclass(frozen=True, kw_only=True)
class SpaceFile:
    """A file that is right: `config.trial` is the tree with every domain in the short form, `space` the same, read."""

    path: str
    config: SweepConfig
    space: Space
    origin: Callable[[str], str]  # where a dotted path stands: `file:line`


def load(path: str | Path, overrides: Sequence[str] = ()) -> SpaceFile:
    """Read a space file, with `--set a.b=c` overrides applied in order.

    Raises:
        InputError: the file cannot be read as YAML, or an override is no assignment.
        SpaceError: every problem of its content, in the order of the file.
    """
    document = Document(path)
    wrong = []
    for override in overrides:
        try:
            document.override(override)
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    space, problems = _read_space(document.tree)
    dropped = {problem.path for problem in problems}
    faults = [Problem.of(fault.path, fault.message, origin=fault.origin) for fault in document.faults]
    config, more = _read_config(document.tree, space)
    if isinstance(document.tree.get("trial"), dict):
        more += [problem for problem in _corner_problems(space) if problem.path not in dropped]
    if not any(f"trial.{path}" in dropped for path in crosschecks.FINITE):
        crossed = list(crosschecks.problems(space, document.tree))
        said = {problem.path for problem in crossed if problem.is_cross}
        more = [problem for problem in more if problem.path not in said] + crossed
    if config is not None and not problems:
        for number, tree in enumerate(config.search.points):
            wrong_here = points.flat(space, tree)[1]
            more += [Problem.of(f"search.points.{number}.{path}", message) for path, message in wrong_here]
    faults += [problem for problem in problems if problem.path == "trial"]
    meant = {_meant(problem) for problem in more if problem.is_unknown_key}
    found = faults + [problem for problem in problems + more if not _follows(problem, faults, meant)]
    if found or config is None:
        raise SpaceError(_lines(found, document, space))
    return SpaceFile(path=str(path), config=config, space=space, origin=document.origin)


def _follows(problem: Problem, faults: Sequence[Problem], meant: set[str]) -> bool:
    """What is above or below a value that could not be read, or missing because it is misspelt: no fault of its own."""
    if problem.what == "is missing" and problem.path in meant:
        return True
    path = f"{problem.path}."
    return any(path.startswith(f"{fault.path}.") or f"{fault.path}.".startswith(path) for fault in faults)


def _meant(problem: Problem) -> str:
    """The path that an unknown key was probably meant as; empty where no name is near."""
    near = re.search(r"; did you mean '([^']+)'\?$", problem.what)
    return f"{problem.path.rpartition('.')[0]}.{near[1]}".lstrip(".") if near else ""


def resolved(config: SweepConfig) -> dict[str, Any]:
    """The whole file in its one canonical form, defaults filled in: what `space.yaml` holds, and loads as the same."""
    tree = config.model_dump(mode="json")
    tree["trial"] = _with_defaults(TrialConfig, config.trial)
    return tree


def identity(config: SweepConfig) -> dict[str, Any]:
    """`resolved` without what cannot change a result: `resources`, `track`, and each kind's `EXECUTION_ONLY` fields.

    `name` stays in: it names the folder of the results, and two folders with one run id would be ambiguous.
    """
    tree = _without_execution(config, resolved(config))
    del tree["resources"]
    tree.pop("track", None)
    return tree


def _without_execution(model: BaseModel, tree: Mapping[str, Any]) -> dict[str, Any]:
    left_out: frozenset[str] = getattr(type(model), "EXECUTION_ONLY", frozenset())
    kept = {}
    for key, value in tree.items():
        inner = getattr(model, key, None)
        if isinstance(inner, BaseModel):
            value = _without_execution(inner, value)
        elif isinstance(inner, dict):
            named = {name: item for name, item in inner.items() if isinstance(item, BaseModel)}
            value = {n: _without_execution(named[n], v) if n in named else v for n, v in value.items()}
        if key not in left_out:
            kept[key] = value
    return kept


def _with_defaults(cls: type[BaseModel], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the defaults of leaves that the file leaves out; none where they depend on a sampled `kind`."""
    filled = dict(tree)
    for name, field in cls.model_fields.items():
        if name not in tree:
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                filled[name] = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        elif isinstance(tree[name], Mapping) and tree[name] and parse_domain(tree[name]) is None:
            section = model_at(cls, [name], tree)
            filled[name] = _with_defaults(section, tree[name]) if section is not None else tree[name]
    return filled


def _read_space(tree: Mapping[str, Any]) -> tuple[Space, list[Problem]]:
    """The space, without its malformed leaves if there are any, so that the others are looked at as well."""
    trial = tree.get("trial")
    kept = copy.deepcopy(trial) if isinstance(trial, dict) else {}  # SweepConfig says that it has to be a section
    problems: list[Problem] = []
    first = True
    while True:
        try:
            return Space(kept), problems
        except TooManyCombinations as error:
            return Space({}), [Problem.of("trial", str(error))]
        except InvalidSpace as error:
            for path, message in error.problems:
                if first or "never be active" in message:  # the others follow from what was dropped
                    problems.append(Problem.of(f"trial.{path}", message))
                _drop(kept, path)
            first = False


def _drop(tree: dict[str, Any], path: str, prefix: str = "") -> None:
    for key in list(tree):
        if f"{prefix}{key}" == path:
            del tree[key]
        elif isinstance(tree[key], dict):
            _drop(tree[key], path, f"{prefix}{key}.")


def _read_config(tree: Mapping[str, Any], space: Space) -> tuple[SweepConfig | None, list[Problem]]:
    whole = {**tree, "trial": space.tree()} if isinstance(tree.get("trial"), dict) else tree
    problems = list(booleans_as_numbers(SweepConfig, {key: value for key, value in tree.items() if key != "trial"}))
    try:
        return SweepConfig.model_validate(whole), problems
    except ValidationError as error:
        return None, problems + explain(error, SweepConfig, whole)


def _corner_problems(space: Space) -> Iterator[Problem]:
    """What is wrong in any branch, each problem once however many corners show it.

    A problem of several settings together is dropped where a continuous range stands at its very end: the end of
    `ce: {uniform: [0, 1]}` is never drawn, and its middle is another corner. A leaf or section that is no setting is
    left out of the corners after the first that shows it, since each would say it again.
    """
    seen: set[Problem | str] = set()
    unknown: set[str] = set()
    for point in space.corners():
        for path in unknown:
            section, _, name = path.rpartition(".")
            found = get_path(point, section) if section else point
            if isinstance(found, dict):
                found.pop(name, None)
        problems = list(booleans_as_numbers(TrialConfig, point))
        try:
            TrialConfig.model_validate(point)
        except ValidationError as error:
            problems += explain(error, TrialConfig, point)
        at_end = _is_at_an_end(space, point) if problems else False
        for problem in problems:
            if problem.is_cross and at_end:
                continue
            if problem.is_unknown_key and owner_of(problem.path, space.leaves) in (None, problem.path):
                unknown.add(problem.path)
            problem = _in_space(problem, space, point)
            key = problem.path if problem.is_unknown_key else problem
            if key not in seen:
                seen.add(key)
                yield problem


def _is_at_an_end(space: Space, point: Mapping[str, Any]) -> bool:
    values = space.point_values(point)
    return any(
        leaf.is_continuous and values[path] in leaf.representatives()
        for path, leaf in space.domains.items()
        if path in values
    )


def _in_space(problem: Problem, space: Space, point: Mapping[str, Any]) -> Problem:
    """The problem of a point as one of the space: the full path, and a range in place of the end that was tried."""
    what = problem.what if "." in problem.path else problem.what.replace("setting of a space file", "setting of trial")
    owner = owner_of(problem.path, space.leaves)
    leaf = space.leaves[owner] if owner is not None else None
    if isinstance(leaf, Domain) and leaf.kind != "choice" and "; given " in what:
        what = f"{what.rpartition('; given ')[0]}; given {leaf.describe()}"
    elif what == "is missing":
        below = [path for path in space.domains if f"{path}.".startswith(f"{problem.path}.")]
        if below:
            why = f"has no default, and is missing wherever it does not apply ({space.domains[below[0]].describe()})"
            return Problem.of(f"trial.{below[0]}", why)
    return replace(problem, path=f"trial.{problem.path}".rstrip("."), what=what)


def _lines(problems: Sequence[Problem], document: Document, space: Space) -> list[str]:
    """One line a problem, each once, in the order of the file; overrides come last."""
    placed: dict[str, tuple[int, int]] = {}
    for problem in problems:
        origin = problem.origin or _origin(problem, document, space)
        if origin in document.overrides:
            order = (1, document.overrides.index(origin))
        else:
            order = (0, int(origin.rpartition(":")[2]))
        placed.setdefault(problem.line(origin), order)
    lines = sorted(placed, key=lambda line: placed[line])
    return lines if len(lines) <= MAX_LINES else [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES:,} more problems"]


def _origin(problem: Problem, document: Document, space: Space) -> str:
    """The line of the option that is wrong, where it is one of a choice; else that of the path."""
    path = problem.path.removeprefix("trial.")
    owner = owner_of(path, space.leaves)
    leaf = space.leaves[owner] if owner is not None else None
    if owner is not None and isinstance(leaf, Domain):
        for number, option in enumerate(leaf.options):
            value = option if path == owner else get_path(option, path[len(owner) + 1 :], ABSENT)
            if is_same(value, problem.value):
                form = "values" if get_path(document.tree, f"trial.{owner}.values") is not None else "choice"
                return document.origin(f"trial.{owner}.{form}.{number}")
    return document.origin(problem.path)
