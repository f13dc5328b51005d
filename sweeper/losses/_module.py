"""What a distillation loss is made of: a float32 module around a formula, projectors, and the distances they share.

A kind's file holds its formula as a function of tensors and passes it to `Float32Loss`; torch is imported only when a
loss is built, so that a space file can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sweeper.losses import LossInputs

ProjectorKind = Literal["linear", "mocov2", "simclr", "simclrv2"]


class Float32Loss(nn.Module):
    """Evaluates `formula(self, inputs)` in float32, outside of autocast, whatever the types that come in.

    bf16 has 8 bits of mantissa: cosines, exponentials of distances and logarithms of sums do not survive it.

    Args:
        formula: reads the trained parts and the buffers as attributes of the module that it is given.
        parts: trained submodules by name.
        buffers: tensors by name that belong to the state but are not trained.
    """

    def __init__(
        self,
        formula: Callable[[nn.Module, LossInputs], Tensor],
        parts: Mapping[str, nn.Module] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.formula = formula
        for name, part in (parts or {}).items():
            self.add_module(name, part)
        for name, buffer in (buffers or {}).items():
            self.register_buffer(name, buffer)

    def forward(self, inputs: LossInputs) -> Tensor:
        """The unweighted loss, a float32 scalar."""
        with torch.autocast(inputs.student_logits_BK.device.type, enabled=False):
            return self.formula(self, float32(inputs))


def float32(inputs: LossInputs) -> LossInputs:
    """The same batch with every floating tensor in float32; gradients flow to the student's tensors only."""
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    floats = {name: value.float() for name, value in tensors.items() if value is not None and value.is_floating_point()}
    return replace(inputs, **{k: v.detach() if k.startswith("teacher") else v for k, v in floats.items()})


def given(tensor: Tensor | None, name: str) -> Tensor:
    """A teacher's tensor that the kind's NEEDS asks for."""
    if tensor is None:
        raise ValueError(f"this loss needs the teacher's {name}, and the batch holds none")
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
    embedding_BT = given(inputs.teacher_embedding_BT, "embedding")
    student_BP = loss.get_submodule("student_projector")(inputs.student_embedding_BD)
    teacher_BP = loss.get_submodule("teacher_projector")(embedding_BT)
    return F.normalize(student_BP, dim=1), F.normalize(teacher_BP, dim=1)
