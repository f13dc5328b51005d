"""A timm model as a `Teacher`: pooled pre-logits features and the linear layer on top of them.

Apart from `timm.py` because a class derived from `torch.nn.Module` needs torch when it is defined, and a space file is
read without it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import torch
from timm.data import resolve_model_data_config
from torch import nn

from sweeper import taps
from sweeper.teachers import TeacherOutput
from sweeper.teachers._module import TeacherModule


class TimmTeacher(TeacherModule):
    """Frozen; see `sweeper.teachers.Teacher` for the attributes.

    Args:
        model: a timm model; its `pretrained_cfg` says the preprocessing.
        input_size: side in pixels at which images enter; None for the model's own.
    """

    head_seconds = 0.0
    model: Any

    def __init__(self, model: Any, input_size: int | None = None) -> None:
        data: dict[str, Any] = resolve_model_data_config(model)
        size = input_size or int(data["input_size"][-1])
        super().__init__(data["mean"], data["std"], size, data["interpolation"])
        self.model = model
        head: object = model.get_classifier()
        self.classifier = head if isinstance(head, nn.Linear) else None
        self.requires_grad_(False).eval()
        with torch.no_grad():
            self.embedding_dim = int(self.embed(self.blank(1)).embedding_BD.shape[1])

    @cached_property
    def tap_points(self) -> taps.TapPoints:
        """Where `taps` reads this model; found by one forward."""
        return taps.find(self.model, self.blank(2))

    def embed(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> taps.Tapped:
        """Pooled pre-logits features [B, D] of images in [0, 1], and what else is asked for."""
        points = self.tap_points if pre or num_maps else taps.NOWHERE
        return taps.read(self.model, self.normalised(images_BCHW), points, pre=pre, num_maps=num_maps)

    def forward(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> TeacherOutput:
        tapped = self.embed(images_BCHW, pre=pre, num_maps=num_maps)
        return TeacherOutput(None if self.classifier is None else self.classifier(tapped.embedding_BD), *tapped)

    def without_classifier(self) -> Self:
        """The backbone alone, in place: `logits_BK` is None."""
        self.classifier = None
        return self
