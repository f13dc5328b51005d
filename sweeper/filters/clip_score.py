"""Keeps what a model of images and texts finds like the text of its class: the cosine of their embeddings.

CLIP (Radford et al. 2021, arXiv 2103.00020) as a judge of generated images: CLIPScore (Hessel et al. 2021,
arXiv 2104.08718), there scaled by 2.5. Any transformers model with an image and a text tower will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from sweeper import weights
from sweeper.errors import InputError, RunFailed
from sweeper.filters import FilterSettings
from sweeper.fingerprint import folder_sha256
from sweeper.wording import spoken

if TYPE_CHECKING:
    import torch

PLACEHOLDER = "{label}"


class Config(FilterSettings):
    """`model`: hub id or folder. `min_score`: a cosine; CLIP gives 0.2 to 0.35 where image and text belong together."""

    kind: Literal["clip_score"] = "clip_score"
    model: str = "openai/clip-vit-base-patch32"
    min_score: Annotated[float, Field(ge=-1, le=1)]
    prompt: str = f"a photo of a {PLACEHOLDER}"
    revision: str | None = None

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, value: str) -> str:
        if PLACEHOLDER not in value:
            raise ValueError(f"{value!r} does not say where the class goes: write {PLACEHOLDER}")
        return value


def identity(config: Config) -> dict[str, Any]:
    """What decides a verdict; a local folder counts by its contents.

    Raises:
        InputError: no such folder.
    """
    path = _local_folder(config)
    named = config.model_dump(mode="json", exclude={"model"})
    return {**named, "model": config.model if path is None else {"folder_sha256": folder_sha256(path)}}


def build(config: Config, device: torch.device, class_names: Sequence[str], teacher: None = None) -> ClipScore:
    """The model on `device`.

    Raises:
        InputError: the folder holds no such model, or no safetensors.
        RunFailed: the hub did not deliver.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = str(_local_folder(config) or config.model)
    named: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        with weights.safetensors_only(f"filter.model: {config.model}", weights.WAY_OUT):
            model = transformers.AutoModel.from_pretrained(source, use_safetensors=True, **named)
        processor = transformers.AutoProcessor.from_pretrained(source, **named)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if _local_folder(config) is not None:
            raise InputError(f"filter.model: {config.model} can not be loaded by transformers: {reason}") from error
        raise RunFailed(
            f"{config.model} could not be fetched from the hub: {reason}; check the name and the network, or save it "
            "as a folder (save_pretrained) and give that as filter.model"
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise InputError(
            f"filter.model: {config.model} ({type(model).__name__}) compares no images with texts; give a CLIP"
        )
    texts = [config.prompt.replace(PLACEHOLDER, spoken(name)) for name in class_names]
    return ClipScore(model.to(device).eval(), processor, device, texts, config.min_score)


def is_here(config: Config) -> bool:
    """Whether the model lies on this disk."""
    return _local_folder(config) is not None


class ClipScore:
    """See `sweeper.filters.Filter`: the score is the cosine of the embeddings of the image and of its class's text."""

    def __init__(self, model: Any, processor: Any, device: torch.device, texts: Sequence[str], least: float) -> None:
        import torch

        self.least = least
        self._model, self._processor, self._device = model, processor, device
        tokens = processor(text=list(texts), return_tensors="pt", padding="max_length", truncation=True).to(device)
        with torch.no_grad():
            self._texts_KD = _unit(model.get_text_features(**tokens))

    def scores(self, images_BHWC: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """float64 [B] in [-1, 1]."""
        import torch

        pixels = self._processor(images=list(images_BHWC), return_tensors="pt").to(self._device)
        with torch.no_grad():
            images_BD = _unit(self._model.get_image_features(**pixels))
        cosines_B = (images_BD * self._texts_KD[list(labels)]).sum(dim=1)
        return np.asarray(cosines_B.double().cpu().numpy())


def _unit(output: Any) -> torch.Tensor:
    """Embeddings of length 1; transformers gives them bare until 4, and from 5 on inside an output."""
    from torch.nn import functional as F

    return F.normalize(getattr(output, "pooler_output", output).float(), dim=1)


def _local_folder(config: Config) -> Path | None:
    """The folder of the model, or None where `model` is a hub id."""
    path = Path(config.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"filter.model: the folder {config.model} has no config.json, so it is no model of transformers"
            )
        return path
    if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise InputError(f"filter.model: the folder {config.model} does not exist; allowed: a folder or a hub id")
    return None
