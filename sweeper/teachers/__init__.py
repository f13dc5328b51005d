"""Teachers: frozen big models whose outputs the targets pass caches. One kind a file.

A kind's module holds

    class Config(Settings)              `kind`, `adapt` and whatever names the model and its weights
    identity(config) -> dict            what decides the teacher's outputs: plain JSON values, weights by their sha256
    check(config)                           refuses names that do not exist, before anything is built
    build(config, class_names) -> Teacher
    sketch(config, class_names) -> Teacher  the same shapes without reading weights, under the device of the caller
    flops_an_image(config, class_names) -> float | None     may be left out: for the forecast, without reading weights
    stand_in(config, folder, num_classes) -> Config         may be left out: for a rehearsal, what is not on this disk
                                                            as a small random model, its files below `folder`

`ensemble` alone has none of these: it is made of other teachers' cached targets.

Shapes: B images, C channels, H x W pixels, K classes, D embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field, model_validator

from sweeper.registry import Settings

if TYPE_CHECKING:
    import torch

    from sweeper.resample import Interpolation
    from sweeper.taps import TapPoints

Adapt = Literal["linear_probe", "fine_tune", "none"]
FINE_TUNE_STEPS = 300  # fit for a small task


class ModelSettings(Settings):
    """What all kinds that read a model's weights share: how they are adapted, entered and admitted.

    `fine_tune_steps`: batches that `adapt: fine_tune` trains for. `input_size` overrides the side in pixels at which
    images enter; left out, the one that the weights were trained at. `trust: true` admits weights that are no
    safetensors: a .bin, .pth or .pt file, read by torch's own restricted unpickler (`weights_only`).
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"trust"})

    adapt: Adapt
    fine_tune_steps: Annotated[int, Field(ge=1, le=1_000_000)] = FINE_TUNE_STEPS
    input_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    trust: bool = False

    @model_validator(mode="after")
    def _steps_are_of_a_fine_tune(self) -> ModelSettings:
        if self.adapt != "fine_tune" and self.fine_tune_steps != FINE_TUNE_STEPS:
            raise ValueError(f"fine_tune_steps: only adapt: fine_tune reads it; given with adapt: {self.adapt}")
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the outputs, but for the weights; `trust` admits weights and changes none."""
        unread = set() if self.adapt == "fine_tune" else {"fine_tune_steps"}
        return self.model_dump(mode="json", exclude={"weights", "trust"} | unread)


class TeacherOutput(NamedTuple):
    """What a teacher says about a batch; `logits_BK` is None where the teacher has no classifier of the task.

    The last two are there if they were asked for: the embedding from before the last activation, and feature maps from
    shallow to deep.
    """

    logits_BK: torch.Tensor | None
    embedding_BD: torch.Tensor
    pre_embedding_BD: torch.Tensor | None = None
    maps: tuple[torch.Tensor, ...] = ()


class Teacher(Protocol):
    """A `torch.nn.Module` in eval mode, on the CPU in float32 until its owner moves it.

    Images come as floats in [0, 1] at `input_size` squares; the teacher normalises them itself, since only it knows
    how. `logits_BK` is `classifier(embedding_BD)` exactly, which the losses that reuse the classifier rely on.
    Of a model's own preprocessing those are its mean, deviation, size and filter (`resample`); the whole square is
    shown, whatever its share to crop. `head_seconds` is the device time that a classifier made of texts has cost.
    """

    input_size: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embedding_dim: int
    classes: int | None
    classifier: torch.nn.Linear | None
    tap_points: TapPoints
    head_seconds: float

    def __call__(self, images_BCHW: torch.Tensor, *, pre: bool = False, num_maps: int = 0) -> TeacherOutput: ...

    def with_classifier(self, weight_KD: torch.Tensor, bias_K: torch.Tensor) -> Teacher:
        """The same backbone under another linear classifier, in place."""
        ...
