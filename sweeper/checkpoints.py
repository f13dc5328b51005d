"""When a trial's state is saved, where, and as what: as often as costs little, in a slot that loads and saves bytes.

A checkpoint is the sha256 of what follows it, and then tensors as safetensors, whose metadata hold the rest as JSON.
Nothing in it can be executed, and bytes that are cut, damaged or another's are seen before they are read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

# A checkpoint may cost this share of the training time, and is not written more often than every few seconds.
CHECKPOINT_SHARE = 0.005
CHECKPOINT_INTERVAL_S = 5.0


class Slot(Protocol):
    """Where a trial's last checkpoint lies."""

    def load(self) -> bytes | None: ...

    def save(self, state: bytes) -> None: ...

    def is_urgent(self) -> bool:
        """Whether this process is about to be taken away; asked on all ranks after each epoch."""
        ...


class Checkpoints:
    """Saves a trial's state now and then.

    Args:
        rank: of this process among those that train the trial; only the first one saves.
    """

    def __init__(self, slot: Slot, rank: int) -> None:
        self.slot, self.rank = slot, rank
        self.saved_at, self.cost = time.perf_counter(), 0.0

    def after_epoch(self, epoch: int, epochs: int, state_bytes: Callable[[], bytes]) -> None:
        """Save if it is due or urgent; never after the last epoch, whose outcome is about to be told."""
        if epoch >= epochs:
            return
        is_urgent = self.slot.is_urgent()
        if self.rank:
            return
        began = time.perf_counter()
        if is_urgent or began - self.saved_at >= max(CHECKPOINT_INTERVAL_S, self.cost / CHECKPOINT_SHARE):
            self.slot.save(state_bytes())
            self.saved_at = time.perf_counter()
            self.cost = self.saved_at - began


def packed(groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> bytes:
    """A checkpoint of tensors by group and name, and of facts that JSON holds; `state_of` reads it.

    Raises:
        TypeError: a fact has no JSON.
    """
    tensors = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    # safetensors takes neither strides of its own (channels last) nor tensors that share memory
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    body = save(plain, metadata={"facts": json.dumps(facts)})
    return hashlib.sha256(body).digest() + body


def state_of(state: bytes, device: torch.device) -> dict[str, Any] | None:
    """What `packed` wrote: the facts by name, and the tensors of each group; None where these are not its bytes."""
    start = hashlib.sha256().digest_size
    digest, body = state[:start], state[start:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])  # of safetensors: its length, and JSON
        found: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
        for name, value in load(body).items():
            group, _, rest = name.partition("/")
            found.setdefault(group, {})[rest] = value.to(device)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return found


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser has gathered, as `NUMBER.NAME` of each parameter; its settings come from the recipe again."""
    gathered: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in gathered.items() for name, value in values.items()}


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Give a new optimiser of the same parameters what `moments` told of the old one."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gathered: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        number, _, name = key.partition(".")
        # in the parameter's own memory format, as it was: the next steps then round as they would have
        own = value.cpu() if name == "step" else torch.empty_like(parameters[int(number)]).copy_(value)
        gathered.setdefault(int(number), {})[name] = own
    optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})
