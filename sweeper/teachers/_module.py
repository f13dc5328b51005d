"""What every `Teacher` that is a module shares: its normalisation, and a linear classifier on its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from sweeper import resample


class TeacherModule(nn.Module):
    """Base of the kinds' modules; see `sweeper.teachers.Teacher` for the attributes.

    Args:
        mean, std: of the pixels that the model was trained on.
        input_size: side in pixels at which images enter.
        interpolation: how they are resized to it.
    """

    embedding_dim: int
    classifier: nn.Linear | None
    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], input_size: int, interpolation: str) -> None:
        super().__init__()
        self.input_size, self.mean, self.std = input_size, tuple(mean), tuple(std)
        self.interpolation = resample.named(interpolation)
        self.register_buffer("mean_C11", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(self.std)[:, None, None], persistent=False)

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return None if self.classifier is None else self.classifier.out_features

    def normalised(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """From [0, 1] to what the model expects."""
        return (images_BCHW - self.mean_C11) / self.std_C11

    def blank(self, count: int) -> torch.Tensor:
        """Black images [count, C, H, W] of its own size, where it lies."""
        size = self.input_size
        return torch.zeros(count, len(self.mean), size, size, device=self.mean_C11.device)

    def with_classifier(self, weight_KD: torch.Tensor, bias_K: torch.Tensor) -> Self:
        """The same backbone under the linear classifier `weight_KD`, `bias_K`, in place."""
        num_classes, width = weight_KD.shape
        if width != self.embedding_dim:
            raise ValueError(f"the classifier reads {width} features; the embedding has {self.embedding_dim}")
        head = nn.Linear(width, num_classes)
        head.load_state_dict({"weight": weight_KD, "bias": bias_K})
        self.classifier = head.requires_grad_(False).to(self.mean_C11.device)
        return self
