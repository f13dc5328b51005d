"""Keeps what an adapted teacher takes for its class, with at least some probability.

He et al. 2023, "Is synthetic data from generative models ready for image recognition?" (arXiv 2210.07574), keep what is
more probable than chance, which is the default here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sweeper.filters import FilterSettings

if TYPE_CHECKING:
    import torch


class Config(FilterSettings):
    """`teacher`: one of the file's single teachers. `min_probability` of the class; left out, one over the classes."""

    kind: Literal["agreement"] = "agreement"
    teacher: str
    min_probability: Annotated[float, Field(ge=0, le=1)] | None = None


def identity(config: Config) -> dict[str, Any]:
    """What decides a verdict, but for the teacher: the name that it has in a file says nothing of it."""
    return config.model_dump(mode="json", exclude={"teacher"})


def build(config: Config, device: torch.device, class_names: Sequence[str], teacher: Any) -> Agreement:
    """The teacher on `device`."""
    least = 1 / len(class_names) if config.min_probability is None else config.min_probability
    return Agreement(teacher.to(device), device, least)


class Agreement:
    """See `sweeper.filters.Filter`: the score is the teacher's probability of the class."""

    def __init__(self, teacher: Any, device: torch.device, least: float) -> None:
        self.least = least
        self._teacher, self._device = teacher, device

    def scores(self, images_BHWC: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """float64 [B] in [0, 1]."""
        import torch

        from sweeper import views

        images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).to(self._device)
        with torch.no_grad():
            seen_BCHW = views.whole(images_BCHW, self._teacher.input_size, self._teacher.interpolation)
            logits_BK = self._teacher(seen_BCHW).logits_BK
        probabilities_BK = logits_BK.double().softmax(dim=1).cpu().numpy()
        return np.asarray(probabilities_BK[np.arange(len(labels)), list(labels)])
