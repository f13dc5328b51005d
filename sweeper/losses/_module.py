"""What a distillation loss is made of: a float32 module around a formula, projectors, and the scale that weighs it.

A kind's file holds its formula as a function of tensors and passes it to `Float32Loss`; torch is imported only when a
loss is built, so that a space file can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sweeper.losses import LossInputs

ProjectorKind = Literal["linear", "mocov2", "simclr", "simclrv2"]
Summands = Tensor | tuple[Tensor, ...]
NORMALIZING_BATCHES = 16
# Shorter vectors have no direction that float32 could tell; torch.nn.functional.normalize divides by this.
SHORTEST = 1e-12


class Float32Loss(nn.Module):
    """Evaluates `formula(self, inputs)` in float32, outside of autocast, whatever the types that come in.

    bf16 has 8 bits of mantissa: cosines, exponentials of distances and logarithms of sums do not survive it.

    Args:
        formula: reads the trained parts and the buffers as attributes of the module that it is given. Where the loss is
            a sum whose terms can cancel (alignment and uniformity), it returns the terms: their sizes then measure the
            size of the loss.
        parts: trained submodules by name.
        buffers: tensors by name that belong to the state but are not trained.
        ramp: factor of the whole loss by the training's progress in [0, 1]; not part of its size.
        classify: maps student embeddings B x D to logits B x K by an affine map that is trained in place of the
            student's own classifier (SimKD). The loop computes the student's logits with it, and writes the map into
            the student's classifier.
    """

    def __init__(
        self,
        formula: Callable[[nn.Module, LossInputs], Summands],
        parts: Mapping[str, nn.Module] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        ramp: Callable[[float], float] | None = None,
        classify: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.formula, self.ramp, self.classify = formula, ramp, classify
        for name, part in (parts or {}).items():
            self.add_module(name, part)
        for name, buffer in (buffers or {}).items():
            self.register_buffer(name, buffer)

    def summands(self, inputs: LossInputs) -> tuple[Tensor, ...]:
        """Float32 scalars whose sum is the unweighted loss before its ramp."""
        with torch.autocast(inputs.student_logits_BK.device.type, enabled=False):
            found = self.formula(self, float32(inputs))
        return found if isinstance(found, tuple) else (found,)

    def factor(self, progress: float) -> float:
        """The ramp's value."""
        return 1.0 if self.ramp is None else self.ramp(progress)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted loss, a float32 scalar."""
        return torch.stack(self.summands(inputs)).sum() * self.factor(inputs.progress)


class Normalized(nn.Module):
    """A loss divided by its own size over the first batches of its training: about 1 there, whatever its formula.

    Published default weights span .02 to 30000 (METHOD section 3); behind this, `weight` compares losses. The size of a
    batch is the sum of |summand|, which does not vanish where terms of opposite sign cancel. The divisor is the mean
    size of the batches so far, up to the 16th, then fixed; batches in which the loss is exactly 0 (no label to use)
    do not count. Both counters are buffers: a resumed trial goes on with the same divisor. [ours]

    Where several workers train one student, a batch's size is the mean over their shares, so that they descend on one
    objective: `pending` holds what this worker measured until `share_sizes` has added up everybody's.

    Attributes:
        is_fixed: the divisor is known to be final, so that nothing is measured or exchanged any more.
    """

    size: Tensor
    batches: Tensor
    pending: Tensor

    def __init__(self, loss: Float32Loss) -> None:
        super().__init__()
        self.loss = loss
        self.is_fixed = False
        self.register_buffer("size", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("pending", torch.zeros(2), persistent=False)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The normalised loss, a float32 scalar; in evaluation mode the divisor stays."""
        value = self.raw(inputs)
        self.take(self.pending)
        return value / self.divisor

    def raw(self, inputs: LossInputs) -> Tensor:
        """The loss before its division; in training its size is noted for `take`."""
        parts = torch.stack(self.loss.summands(inputs))
        if self.training and not self.is_fixed:
            size = parts.detach().abs().sum()
            counts = (size > 0) & size.isfinite()
            self.pending += torch.where(counts, torch.stack([size, torch.ones_like(size)]), 0.0)
        return parts.sum() * self.loss.factor(inputs.progress)

    def take(self, measured: Tensor) -> None:
        """Count the measurements of one step, given as their sum and their number, as one batch."""
        total, count = measured.unbind()
        counts = (self.batches < NORMALIZING_BATCHES) & (count > 0)
        batches = self.batches + counts
        mean = self.size + (total / count.clamp(min=1) - self.size) / batches.clamp(min=1)
        self.size.copy_(torch.where(counts, mean, self.size))
        self.batches.copy_(batches)
        self.pending.zero_()

    def settle(self) -> None:
        """Ask the device whether there were batches enough: once an epoch, since it has to be waited for."""
        self.is_fixed = self.is_fixed or bool(self.batches >= NORMALIZING_BATCHES)

    @property
    def divisor(self) -> Tensor:
        """The mean size so far; 1 before there is any. A value of its own, which later steps do not move."""
        return torch.where(self.batches > 0, self.size, 1.0)


def share_sizes(terms: Sequence[Normalized]) -> None:
    """Count what all workers measured in this step; every worker calls it in every step, whatever its share held."""
    terms = [term for term in terms if not term.is_fixed]  # the same ones for all workers, whose counters agree
    if not terms:
        return
    measured = torch.stack([term.pending for term in terms])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(measured)
    for term, sums in zip(terms, measured, strict=True):
        term.take(sums)


def float32(inputs: LossInputs) -> LossInputs:
    """The same batch with every floating tensor in float32; gradients flow to the student's tensors only."""

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(convert(name, item) for item in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.float().detach() if name.startswith("teacher") else value.float()

    return replace(inputs, **{field.name: convert(field.name, getattr(inputs, field.name)) for field in fields(inputs)})


def unit(vectors: Tensor, dim: int) -> Tensor:
    """L2-normalised along `dim`; a vector of length 0 stays 0 and has no slope."""
    squared = vectors.square().sum(dim=dim, keepdim=True)
    has_length = squared > SHORTEST**2
    return torch.where(has_length, vectors / torch.where(has_length, squared, 1.0).sqrt(), 0.0)


def given(tensor: Tensor | None, name: str) -> Tensor:
    """A tensor that the kind's NEEDS asks for."""
    if tensor is None:
        raise ValueError(f"this loss needs the {name}, and the batch holds none")
    return tensor


def projector(kind: ProjectorKind, width_in: int, width_out: int) -> nn.Sequential:
    """A trained map from an embedding to the space of a loss, without the final L2 normalisation.

    linear: one layer. mocov2: Linear-ReLU-Linear (arXiv 2003.04297). simclr: the same with BatchNorm after each layer,
    the last one without affine (arXiv 2002.05709). simclrv2: three such layers (arXiv 2006.10029). Hidden layers keep
    `width_in`.
    """
    if kind == "linear":
        return nn.Sequential(nn.Linear(width_in, width_out))
    if kind == "mocov2":
        return nn.Sequential(nn.Linear(width_in, width_in), nn.ReLU(), nn.Linear(width_in, width_out))
    layers: list[nn.Module] = []
    for _ in range(1 if kind == "simclr" else 2):
        layers += [nn.Linear(width_in, width_in), nn.BatchNorm1d(width_in), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out, affine=False))


def projected(loss: nn.Module, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Unit vectors zS, zT, B x P each, from the parts `student_projector` and `teacher_projector` of a loss."""
    embedding_BT = given(inputs.teacher_embedding_BT, "teacher's embedding")
    student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
    teacher_BP = loss.get_submodule("teacher_projector")(embedding_BT)
    return F.normalize(student_BP, dim=1), F.normalize(teacher_BP, dim=1)
