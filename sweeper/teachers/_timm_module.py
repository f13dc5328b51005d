"""A timm model as a `Teacher`: pooled pre-logits features and the linear layer on top of them.

Apart from `timm.py` because a class derived from `torch.nn.Module` needs torch when it is defined, and a space file is
read without it.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from timm.data import resolve_model_data_config
from torch import nn

from sweeper.teachers import TeacherOutput


class TimmTeacher(nn.Module):
    """Frozen; see `sweeper.teachers.Teacher` for the attributes.

    Args:
        model: a timm model; its `pretrained_cfg` says the preprocessing.
        input_size: side in pixels at which images enter; None for the model's own.
    """

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
            self.embedding_dim = int(
                self.embed(torch.zeros(1, len(self.mean), self.input_size, self.input_size)).shape[1]
            )

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return None if self.classifier is None else self.classifier.out_features

    def embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Pooled pre-logits features [B, D] of images in [0, 1]."""
        features = self.model.forward_features((images_BCHW - self.mean_C11) / self.std_C11)
        embedding: torch.Tensor = self.model.forward_head(features, pre_logits=True)
        return embedding.flatten(1)

    def forward(self, images_BCHW: torch.Tensor) -> TeacherOutput:
        embedding_BD = self.embed(images_BCHW)
        return TeacherOutput(None if self.classifier is None else self.classifier(embedding_BD), embedding_BD)

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
