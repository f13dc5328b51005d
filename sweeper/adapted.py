"""Reads what `adapt` stored: the adapted teacher, or its classifier alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors

from sweeper import registry
from sweeper.errors import RunFailed
from sweeper.registry import Settings
from sweeper.store import Record, Store

if TYPE_CHECKING:
    from torch import Tensor

    from sweeper.teachers import Teacher

CHANGED_FILE, CLASSIFIER_FILE = "changed.safetensors", "classifier.safetensors"


def load_classifier(store: Store, record: Record) -> tuple[Tensor, Tensor]:
    """Weight K x T and bias K of the adapted teacher's linear classifier, float32 on the CPU."""
    found = load_tensors(store.read_bytes(record, CLASSIFIER_FILE))
    return found["weight"], found["bias"]


def load_teacher(store: Store, key: str, config: Settings, class_names: Sequence[str]) -> Teacher:
    """The adapted teacher of an `adapt` artifact, frozen, on the CPU.

    Raises:
        RunFailed: the artifact is not in the store.
    """
    record = store.get(key)
    if record is None:
        raise RunFailed(f"adapted teacher {key[:12]} is not in {store.uri}; run again to build it")
    # the classifier is stored: a zero-shot one need not be made of texts again
    bare = config.model_copy(update={"adapt": "linear_probe"})
    teacher: Any = registry.load("teachers", config.kind).build(bare, class_names)  # type: ignore[attr-defined]
    teacher.with_classifier(*load_classifier(store, record))
    if record.meta["adapt"] == "fine_tune":
        teacher.load_state_dict(load_tensors(store.read_bytes(record, CHANGED_FILE)))
    adapted: Teacher = teacher
    return adapted
