"""The image tower of a CLIP as a `Teacher`: its embedding is L2-normalised, and classes lie on it by cosine.

Apart from `open_clip.py` for the reason that `_timm_module` is. The text tower is no part of it: what class names said
is in the classifier by the time that this is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from sweeper import taps
from sweeper.errors import InputError
from sweeper.teachers import TeacherOutput
from sweeper.teachers._module import TeacherModule


class OpenClipTeacher(TeacherModule):
    """Frozen; see `sweeper.teachers.Teacher` for the attributes.

    What stands before the last activation (`pre`) is the embedding before its normalisation; maps are those that the
    tower's own `forward_intermediates` gives.

    Args:
        visual: the image tower.
        mean, std: of the pixels that it was trained on.
        input_size: side in pixels at which images enter.
        interpolation: how they are resized to it.
    """

    head_seconds = 0.0
    visual: Any

    def __init__(
        self, visual: Any, mean: Sequence[float], std: Sequence[float], input_size: int, interpolation: str
    ) -> None:
        super().__init__(mean, std, input_size, interpolation)
        self.visual = visual
        self.classifier = None
        self.requires_grad_(False).eval()
        with torch.no_grad():
            self.embedding_dim = int(self(self.blank(1)).embedding_BD.shape[1])

    @cached_property
    def tap_points(self) -> taps.TapPoints:
        """Numbers and shapes of the tower's maps; `last` is None, since what ends the features here is no module."""
        with torch.no_grad():
            try:
                found = self._intermediates(self.blank(2), None)["image_intermediates"]
            except (AttributeError, TypeError, AssertionError):  # a tower without it, or without maps in this form
                found = []
        return taps.TapPoints(None, False, *taps.chosen_maps(found))

    def _intermediates(self, normalised_BCHW: torch.Tensor, indices: list[int] | None) -> dict[str, Any]:
        found: dict[str, Any] = self.visual.forward_intermediates(normalised_BCHW, indices=indices, output_fmt="NCHW")
        return found

    def forward(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> TeacherOutput:
        normalised_BCHW = self.normalised(images_BCHW)
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
