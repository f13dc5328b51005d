"""A student: a timm architecture that gives its logits and the pooled feature below them, and its file format.

The export is timm's own folder format, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` is all that a
user of a student needs. Everything here is plain torch and timm; the loop that trains it is `train`.

Shapes: B batch, C channels, H and W pixels, K classes, D width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sweeper import flops, taps
from sweeper.architecture import (
    CONFIG_FILE,
    LOCAL_DIR,
    WEIGHTS_FILE,
    check,
    first_line,
    folder_of,
    quiet_timm,
    read_config,
)
from sweeper.errors import InputError
from sweeper.weights import WAY_OUT, safetensors_only

if TYPE_CHECKING:
    from sweeper.trial import StudentConfig

# Architectures whose two-step forward was already compared with their own: one comparison a process is enough.
_verified: set[str] = set()


class StudentOutput(NamedTuple):
    """The logits, and the pooled embedding from which the classifier computes them; the rest where it was asked for."""

    logits_BK: Tensor
    embedding_BD: Tensor
    pre_embedding_BD: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class Student(nn.Module):
    """Wraps a timm model; takes images in [0, 1] and normalises them itself. `build` and `load` make one.

    Attributes:
        model: the timm model, whose state dict is what `export` writes.
        architecture: its name without a tag; with `model_args` and `num_classes` it makes the same model again.
        image_size: side in pixels of the images that it was made for.
        embedding_dim: D.
        mean, std: the normalisation of its three channels, from the architecture's `pretrained_cfg`.
    """

    _mean_C11: Tensor
    _std_C11: Tensor

    def __init__(self, model: Any, architecture: str, model_args: Mapping[str, Any], image_size: int) -> None:
        super().__init__()
        classifier = model.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise InputError(
                f"trial.student.model: {architecture!r} does not end in one linear classifier on a pooled feature "
                f"(it has {type(classifier).__name__}), which embedding losses need; choose another architecture"
            )
        self.model = model
        self.architecture = architecture
        self.model_args = dict(model_args)
        self.image_size = image_size
        self.num_classes = classifier.out_features
        self.embedding_dim = classifier.in_features
        self.mean = tuple(map(float, model.pretrained_cfg["mean"]))
        self.std = tuple(map(float, model.pretrained_cfg["std"]))
        self.register_buffer("_mean_C11", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("_std_C11", torch.tensor(self.std)[:, None, None], persistent=False)

    @property
    def num_parameters(self) -> int:
        """Trainable values, the classifier included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """From [0, 1] to what the timm model expects."""
        return (images_BCHW - self._mean_C11) / self._std_C11

    @cached_property
    def tap_points(self) -> taps.TapPoints:
        """Where `taps` reads this model; found by one forward."""
        size, device = self.image_size, self._mean_C11.device
        return taps.find(self.model, torch.zeros(2, 3, size, size, device=device))

    def forward(self, images_BCHW: Tensor, *, pre: bool = False, num_maps: int = 0) -> StudentOutput:
        """Equals `self.model` on normalised images; the embedding is what its classifier sees, dropout included.

        Args:
            pre: also the embedding from before the last activation.
            num_maps: also so many of the deepest maps, shallow to deep.
        """
        points = self.tap_points if pre or num_maps else taps.NOWHERE
        tapped = taps.read(self.model, self.normalise(images_BCHW), points, pre=pre, num_maps=num_maps)
        return StudentOutput(self.model.get_classifier()(tapped.embedding_BD), *tapped)


def build(config: StudentConfig, num_classes: int, image_size: int, seed: int) -> Student:
    """A student on the CPU in training mode, equal for equal arguments; the global generators are left as they are.

    With `init: pretrained` the classifier's weights are kept only where their number of classes is `num_classes`.

    Args:
        image_size: side in pixels of the dataset's images, which the student takes unless `config` has a size of its
            own; architectures of a fixed input size are made for it.
        seed: of the random initialisation, together with the architecture's name.

    Raises:
        InputError: see `check`; or timm refuses the arguments or the image size; or the weights cannot be had.
    """
    check(config)
    image_size = config.image_size or image_size
    folder = folder_of(config.model)
    saved = read_config(folder) if folder is not None else {}
    name = f"{LOCAL_DIR}{folder}" if folder is not None else config.model
    architecture = str(saved.get("architecture", config.model.partition(".")[0]))
    saved_args = {key: value for key, value in saved.get("model_args", {}).items() if key != "img_size"}
    model_args = {**saved_args, **config.model_args}
    with quiet_timm() as timm, _seeded(seed, architecture):
        if timm.get_pretrained_cfg(architecture).fixed_input_size:
            model_args["img_size"] = image_size
        try:
            with safetensors_only(f"weights of {config.model!r}", WAY_OUT):
                model = timm.create_model(name, config.init == "pretrained", num_classes=num_classes, **model_args)
        except Exception as error:  # timm, the hub and the model's constructor each raise types of their own
            raise InputError(
                f"trial.student: timm cannot make {config.model!r} (init {config.init}, model_args {model_args}, "
                f"{num_classes} classes): {first_line(error)}"
            ) from error
        student = Student(model, architecture, model_args, image_size)
        key = json.dumps([architecture, model_args, image_size], sort_keys=True, default=repr)
        if key not in _verified and not model.get_classifier().weight.is_meta:  # shapes alone compute nothing
            _verify(student)
            _verified.add(key)
    return student.train()


def flops_an_image(config: StudentConfig, num_classes: int, image_size: int) -> float | None:
    """Operations of a student's forward on one image; no weight is read."""
    size = config.image_size or image_size

    def make() -> Student:
        return build(config.model_copy(update={"init": "random"}), num_classes, size, seed=0)

    return flops.forward_flops(make, lambda model: model(torch.empty(1, 3, size, size)))


def export(student: Student, class_names: Sequence[str]) -> dict[str, bytes]:
    """The files of a folder that timm alone can load: `config.json` and `model.safetensors`.

    `pretrained_cfg` describes sweeper's preprocessing (short side to `image_size`, bicubic, centre crop), so that
    `timm.data.resolve_model_data_config` followed by `create_transform` repeats it on the user's images.
    """
    if len(class_names) != student.num_classes:
        raise ValueError(f"{len(class_names)} class names for {student.num_classes} classes")
    source = student.model.pretrained_cfg
    size = student.image_size
    pretrained_cfg = {
        "input_size": [3, size, size],
        "fixed_input_size": bool(source.get("fixed_input_size", False)),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(student.mean),
        "std": list(student.std),
        "num_classes": student.num_classes,
        "first_conv": source.get("first_conv"),
        "classifier": source.get("classifier"),
    }
    config = {
        "architecture": student.architecture,
        "num_classes": student.num_classes,
        "num_features": student.embedding_dim,
        "label_names": list(class_names),
        "model_args": student.model_args,
        "pretrained_cfg": pretrained_cfg,
    }
    # safetensors refuses tensors that share memory; a copy of each is cheap at a student's size
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in student.model.state_dict().items()}
    config_bytes = (json.dumps(config, indent=2) + "\n").encode()
    return {CONFIG_FILE: config_bytes, WEIGHTS_FILE: save(weights, metadata={"format": "pt"})}


def load(folder: str | Path) -> Student:
    """Read what `export` wrote: the same student, on the CPU, in evaluation mode.

    Raises:
        InputError: the folder is not an exported student.
    """
    folder = Path(folder)
    config = read_config(folder)
    with quiet_timm() as timm, _seeded(0, config["architecture"]):
        try:
            with safetensors_only(str(folder), WAY_OUT):
                model = timm.create_model(f"{LOCAL_DIR}{folder}", pretrained=True)
        except Exception as error:  # as in `build`
            raise InputError(f"{folder}: timm cannot load this student: {first_line(error)}") from error
    image_size = int(config["pretrained_cfg"]["input_size"][-1])
    return Student(model, config["architecture"], config.get("model_args", {}), image_size).eval()


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    """Draws from torch's CPU generator come from (seed, name) inside, and leave no trace outside.

    Not `torch.manual_seed`, which would also reset the accelerators' generators.
    """
    digest = hashlib.blake2b(f"student/{name}/{seed}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield


def _verify(student: Student) -> None:
    """Compare the two-step forward with the model's own, also with the dropout of its head switched on.

    Some architectures average two heads or drop features only after `pre_logits`: their embedding would mislead.
    """
    model, size = student.model, student.image_size
    images_BCHW = torch.linspace(0, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    with torch.no_grad():
        try:
            logits_BK, embedding_BD = student.eval()(images_BCHW)[:2]
            whole_BK = model(student.normalise(images_BCHW))
            features = model.forward_features(images_BCHW)
            for module in model.modules():
                module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
            torch.default_generator.manual_seed(0)
            dropped_BK = model.forward_head(features)
            torch.default_generator.manual_seed(0)
            twice_BK = model.get_classifier()(model.forward_head(features, pre_logits=True))
        except Exception as error:  # each architecture has its own way to refuse an image size
            raise InputError(
                f"trial.student.model: {student.architecture!r} with model_args {student.model_args} cannot take "
                f"images of {size} x {size} pixels: {first_line(error)}"
            ) from error
    pooled = embedding_BD.shape == (2, student.embedding_dim)
    if not (pooled and torch.allclose(logits_BK, whole_BK) and torch.allclose(twice_BK, dropped_BK)):
        raise InputError(
            f"trial.student.model: the logits of {student.architecture!r} with model_args {student.model_args} are not "
            "its classifier on a pooled feature (two heads, no pooling, late dropout); choose another architecture"
        )
