"""The image tower of a CLIP as a `Teacher`: its embedding is L2-normalised, and classes lie on it by cosine.

Apart from `open_clip.py` for the reason that `_timm_module` is. The text tower is no part of it: what class names said
is in the classifier by the time that this is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from sweeper import taps
from sweeper.errors import InputError
from sweeper.teachers import TeacherOutput


class OpenClipTeacher(nn.Module):
    """Frozen; see `sweeper.teachers.Teacher` for the attributes.

    What stands before the last activation (`pre`) is the embedding before its normalisation; maps are those that the
    tower's own `forward_intermediates` gives.

    Args:
        visual: the image tower.
        mean, std: of the pixels that it was trained on.
        input_size: side in pixels at which images enter.
    """

    head_seconds = 0.0
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    visual: Any
    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, visual: Any, mean: Sequence[float], std: Sequence[float], input_size: int) -> None:
        super().__init__()
        self.input_size, self.mean, self.std = input_size, tuple(mean), tuple(std)
        self.register_buffer("mean_C11", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(self.std)[:, None, None], persistent=False)
        self.visual = visual
        self.classifier: nn.Linear | None = None
        self.requires_grad_(False).eval()
        with torch.no_grad():
            self.embedding_dim = int(self(torch.zeros(1, len(self.mean), input_size, input_size)).embedding_BD.shape[1])

    @property
    def classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return None if self.classifier is None else self.classifier.out_features

    @cached_property
    def tap_points(self) -> taps.TapPoints:
        """Numbers and shapes of the tower's maps; `last` is None, since what ends the features here is no module."""
        images_BCHW = torch.zeros(2, len(self.mean), self.input_size, self.input_size, device=self.mean_C11.device)
        with torch.no_grad():
            try:
                found = self._intermediates(images_BCHW, None)["image_intermediates"]
            except (AttributeError, TypeError, AssertionError):  # a tower without it, or without maps in this form
                found = []
        return taps.TapPoints(None, False, *taps.chosen_maps(found))

    def _intermediates(self, normalised_BCHW: torch.Tensor, indices: list[int] | None) -> dict[str, Any]:
        found: dict[str, Any] = self.visual.forward_intermediates(normalised_BCHW, indices=indices, output_fmt="NCHW")
        return found

    def forward(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> TeacherOutput:
        normalised_BCHW = (images_BCHW - self.mean_C11) / self.std_C11
        maps: tuple[torch.Tensor, ...] = ()
        if num_maps:
            points = self.tap_points.maps
            if num_maps > len(points):
                kind = type(self.visual).__name__
                raise InputError(f"{kind} offers {len(points)} intermediate maps, {num_maps} are needed")
            found = self._intermediates(normalised_BCHW, list(points[-num_maps:]))
            maps, features = tuple(found["image_intermediates"]), found["image_features"]
        else:
            features = self.visual(normalised_BCHW)
        features_BD = features[0] if isinstance(features, tuple) else features  # some towers add their tokens
        embedding_BD = F.normalize(features_BD, dim=1)
        logits_BK = None if self.classifier is None else self.classifier(embedding_BD)
        return TeacherOutput(logits_BK, embedding_BD, features_BD if pre else None, maps)

    def with_classifier(self, weight_KD: torch.Tensor, bias_K: torch.Tensor) -> Self:
        """The same tower under the linear classifier `weight_KD`, `bias_K`, in place."""
        num_classes, width = weight_KD.shape
        if width != self.embedding_dim:
            raise ValueError(f"the classifier reads {width} features; the embedding has {self.embedding_dim}")
        head = nn.Linear(width, num_classes)
        head.load_state_dict({"weight": weight_KD, "bias": bias_K})
        self.classifier = head.requires_grad_(False).to(self.mean_C11.device)
        return self
