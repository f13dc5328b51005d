"""Finds the module behind `kind:`: the string in the file is the name of a module in its family's folder.

A family is a folder of `sweeper/`; a kind is one file in it. There is no table to edit: a new file is a new kind.
Each kind module has a docstring whose first line describes it and a `Config` class derived from `Settings`
(`kinds` and the contract tests read both); the rest of its contract is in the family's `__init__`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from sweeper.errors import InputError

MAX_NUMBER = 1e9  # a slip beyond it would end in an overflow, or in no memory, far from its cause
FAMILIES = ("datasets", "teachers", "generators", "filters", "losses", "schedulers", "trackers")


class Settings(BaseModel):
    """Base of every section of a space file: frozen, and unknown keys are refused.

    A number without a greatest value of its own may be `MAX_NUMBER` at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _is_no_slip(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, float | int) or abs(value) <= MAX_NUMBER:
            return value
        field = cls.model_fields[str(info.field_name)]
        if any(isinstance(bound, Le | Lt) for bound in field.metadata):
            return value
        if value < 0:
            raise PydanticKnownError("greater_than_equal", {"ge": -MAX_NUMBER})
        raise PydanticKnownError("less_than_equal", {"le": MAX_NUMBER})


@cache
def kinds(family: str) -> dict[str, str]:
    """Names of a family's kinds with their one-line descriptions, without importing any of them."""
    if family not in FAMILIES:
        raise InputError(f"family: {family!r} is not one; allowed: {', '.join(FAMILIES)}")
    found = {}
    for path in sorted((Path(__file__).parent / family).glob("*.py")):
        if not path.stem.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.splitlines()[0] if docstring else ""
    return found


def load(family: str, kind: str) -> ModuleType:
    """Import the module of a kind.

    Raises:
        InputError: no such kind; the message names the nearest one.
    """
    known = kinds(family)
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        allowed = f"allowed: {', '.join(known)}; `sweeper kinds {family}` lists them"
        raise InputError(f"{kind!r} is not a kind of {family}{hint} ({allowed})")
    return importlib.import_module(f"sweeper.{family}.{kind}")


def config_class(family: str, kind: str) -> type[Settings]:
    """The `Config` of a kind. Raises InputError as `load` does."""
    found: type[Settings] = load(family, kind).Config
    return found
