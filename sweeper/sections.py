"""How a section that begins with `kind:` becomes the `Config` of that kind's module."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from sweeper import registry
from sweeper.domain import nearest
from sweeper.registry import Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def of_kind(family: str, value: Any, allowed: tuple[str, ...]) -> type[Settings]:
    """The `Config` of the kind that `value` names.

    Raises:
        PydanticCustomError: no kind or none of `allowed`, marked so that `explain` blames the `kind:` itself.
    """
    known = f"allowed: {', '.join(allowed)}; `sweeper kinds {family}` lists them"
    if not isinstance(value, dict):
        raise PydanticCustomError("no_section", "needs a section with `kind:` ({known})", {"known": known})
    if "kind" not in value:
        raise PydanticCustomError("no_kind", "is missing ({known})", {"known": known})
    if (kind := value["kind"]) not in allowed:
        message = f"{kind!r} is not a kind of {family}{nearest(str(kind), allowed)} ({known})"
        raise PydanticCustomError("unknown_kind", "{message}", {"message": message})
    return registry.config_class(family, kind)


def of_family(family: str) -> BeforeValidator:
    """A mapping with `kind:` becomes the `Config` of that kind; an instance passes."""

    def build(value: Any) -> Settings:
        if isinstance(value, Settings):
            return value
        return of_kind(family, value, tuple(registry.kinds(family))).model_validate(value)

    return BeforeValidator(build)
