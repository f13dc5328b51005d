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


class TimmTeacher(nn.Module):
    """Frozen; see `sweeper.teachers.Teacher` for the attributes.

    Args:
        model: a timm model; its `pretrained_cfg` says the preprocessing.
        input_size: side in pixels at which images enter; None for the model's own.
    """

    head_seconds = 0.0
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: Any
    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, model: Any, input_size: int | None = None) -> None:
        super().__init__()
        data: dict[str, Any] = resolve_model_data_config(model)
        self.input_size = input_size or int(data["input_size"][-1])
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])
        self.register_buffer("mean_C11", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(self.std)[:, None, None], persistent=False)
        self.model = model
        head: object = model.get_classifier()
        self.classifier: nn.Linear | None = head if isinstance(head, nn.Linear) else None
        self.requires_grad_(False).eval()
        with torch.no_grad():
            images_1CHW = torch.zeros(1, len(self.mean), self.input_size, self.input_size)
            self.embedding_dim = int(self.embed(images_1CHW).embedding_BD.shape[1])

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return None if self.classifier is None else self.classifier.out_features

    @cached_property
    def tap_points(self) -> taps.TapPoints:
        """Where `taps` reads this model; found by one forward."""
        size = self.input_size
        return taps.find(self.model, torch.zeros(2, len(self.mean), size, size, device=self.mean_C11.device))

    def embed(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> taps.Tapped:
        """Pooled pre-logits features [B, D] of images in [0, 1], and what else is asked for."""
        points = self.tap_points if pre or num_maps else taps.NOWHERE
        normalised_BCHW = (images_BCHW - self.mean_C11) / self.std_C11
        return taps.read(self.model, normalised_BCHW, points, pre=pre, num_maps=num_maps)

    def forward(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> TeacherOutput:
        tapped = self.embed(images_BCHW, pre=pre, num_maps=num_maps)
        return TeacherOutput(None if self.classifier is None else self.classifier(tapped.embedding_BD), *tapped)

    def with_classifier(self, weight_KD: torch.Tensor, bias_K: torch.Tensor) -> Self:
        """The same backbone under the linear classifier `weight_KD`, `bias_K`, in place."""
        num_classes, width = weight_KD.shape
        if width != self.embedding_dim:
            raise ValueError(f"the classifier reads {width} features; the embedding has {self.embedding_dim}")
        head = nn.Linear(width, num_classes)
        head.load_state_dict({"weight": weight_KD, "bias": bias_K})
        self.classifier = head.requires_grad_(False).to(self.mean_C11.device)
        return self

    def without_classifier(self) -> Self:
        """The backbone alone, in place: `logits_BK` is None."""
        self.classifier = None
        return self
