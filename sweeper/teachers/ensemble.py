"""Several teachers as one, made of their cached targets: no pass of its own, no teacher in the loop.

`cnn+vit` at `trial.teacher` is short for an ensemble with the defaults.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sweeper.registry import Settings


class Config(Settings):
    """Logits are averaged over the members, each counting alike.

    `embedding: concatenated` puts the members' embeddings side by side, each scaled to a mean length of 1 over the
    training pool, so that a teacher with long features does not drown the others. `separate` takes the embedding loss
    for each member by itself, with its own projectors, and averages: widths and losses are then those of one teacher.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[str, ...], Field(min_length=2)]
    embedding: Literal["concatenated", "separate"] = "concatenated"

    @field_validator("members")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"names a teacher twice: {', '.join(value)}")
        return value
