"""A student: a timm architecture that gives its logits and the pooled feature below them, and its file format.

The export is timm's own folder format, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` is all that a
user of a student needs. Everything here is plain torch and timm; the loop that trains it is `train`.

Shapes: B batch, C channels, H and W pixels, K classes, D width of the embedding.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sweeper.errors import InputError

if TYPE_CHECKING:
    from sweeper.config import StudentConfig

LOCAL_DIR = "local-dir:"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Decided by the dataset, by `init` or by the form of the wrapper, hence not free for `model_args`.
RESERVED_ARGS = frozenset(
    {"num_classes", "img_size", "in_chans", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    | {"checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit"}
)
# Architectures whose two-step forward was already compared with their own: one comparison a process is enough.
_verified: set[str] = set()


class StudentOutput(NamedTuple):
    """The logits, and the pooled embedding from which the classifier computes them."""

    logits_BK: Tensor
    embedding_BD: Tensor


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

    def forward(self, images_BCHW: Tensor) -> StudentOutput:
        """Equals `self.model` on normalised images; the embedding is what its classifier sees, dropout included."""
        features = self.model.forward_features(self.normalise(images_BCHW))
        embedding_BD = self.model.forward_head(features, pre_logits=True)
        return StudentOutput(self.model.get_classifier()(embedding_BD), embedding_BD)


def check(config: StudentConfig) -> None:
    """Refuse a model that does not exist, or arguments that are not free, without building anything.

    Raises:
        InputError: naming the nearest architectures.
    """
    taken = sorted(RESERVED_ARGS.intersection(config.model_args))
    if taken:
        raise InputError(f"trial.student.model_args: sweeper decides {', '.join(taken)}; leave it out")
    folder = _folder(config.model)
    if folder is not None:
        _read_config(folder)
        if config.init == "pretrained" and not (folder / WEIGHTS_FILE).is_file():
            raise InputError(f"trial.student.init: pretrained, but {folder} has no {WEIGHTS_FILE}; use init: random")
        return
    with quiet_timm() as timm:
        name, _, tag = config.model.partition(".")
        if not timm.is_model(name):
            near = ", ".join(map(repr, difflib.get_close_matches(name.lower(), timm.list_models(), n=3)))
            hint = f"did you mean {near}?" if near else "timm.list_models() lists them"
            raise InputError(f"trial.student.model: {config.model!r} is not an architecture of timm; {hint}")
        tags = timm.list_pretrained(f"{name}.*")
        if tag and config.model not in tags:
            allowed = f"allowed: {', '.join(tags)}" if tags else f"{name!r} has no weights at all"
            raise InputError(f"trial.student.model: {config.model!r} is not among timm's weights; {allowed}")
        if config.init == "pretrained" and not tags:
            raise InputError(f"trial.student.init: pretrained, but timm has no weights of {name!r}; use init: random")


def build(config: StudentConfig, num_classes: int, image_size: int, seed: int) -> Student:
    """A student on the CPU in training mode, equal for equal arguments; the global generators are left as they are.

    With `init: pretrained` the classifier's weights are kept only where their number of classes is `num_classes`.

    Args:
        image_size: side in pixels; architectures of a fixed input size are made for it.
        seed: of the random initialisation, together with the architecture's name.

    Raises:
        InputError: see `check`; or timm refuses the arguments or the image size; or the weights cannot be had.
    """
    check(config)
    folder = _folder(config.model)
    saved = _read_config(folder) if folder is not None else {}
    name = f"{LOCAL_DIR}{folder}" if folder is not None else config.model
    architecture = str(saved.get("architecture", config.model.partition(".")[0]))
    saved_args = {key: value for key, value in saved.get("model_args", {}).items() if key != "img_size"}
    model_args = {**saved_args, **config.model_args}
    with quiet_timm() as timm, _seeded(seed, architecture):
        if timm.get_pretrained_cfg(architecture).fixed_input_size:
            model_args["img_size"] = image_size
        try:
            model = timm.create_model(name, config.init == "pretrained", num_classes=num_classes, **model_args)
        except Exception as error:  # timm, the hub and the model's constructor each raise types of their own
            raise InputError(
                f"trial.student: timm cannot make {config.model!r} (init {config.init}, model_args {model_args}, "
                f"{num_classes} classes): {_first_line(error)}"
            ) from error
        student = Student(model, architecture, model_args, image_size)
        key = json.dumps([architecture, model_args, image_size], sort_keys=True, default=repr)
        if key not in _verified and not model.get_classifier().weight.is_meta:  # shapes alone compute nothing
            _verify(student)
            _verified.add(key)
    return student.train()


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
    config = _read_config(folder)
    with quiet_timm() as timm, _seeded(0, config["architecture"]):
        try:
            model = timm.create_model(f"{LOCAL_DIR}{folder}", pretrained=True)
        except Exception as error:  # as in `build`
            raise InputError(f"{folder}: timm cannot load this student: {_first_line(error)}") from error
    image_size = int(config["pretrained_cfg"]["input_size"][-1])
    return Student(model, config["architecture"], config.get("model_args", {}), image_size).eval()


@contextmanager
def quiet_timm() -> Iterator[Any]:
    """timm, imported only here, with its and the hub's warnings, log lines and progress bars held back."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("timm", "huggingface_hub"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        # for good: bars of the hub would break into sweeper's own
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
        for logger in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield timm
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


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
            logits_BK, embedding_BD = student.eval()(images_BCHW)
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
                f"images of {size} x {size} pixels: {_first_line(error)}"
            ) from error
    pooled = embedding_BD.shape == (2, student.embedding_dim)
    if not (pooled and torch.allclose(logits_BK, whole_BK) and torch.allclose(twice_BK, dropped_BK)):
        raise InputError(
            f"trial.student.model: the logits of {student.architecture!r} with model_args {student.model_args} are not "
            "its classifier on a pooled feature (two heads, no pooling, late dropout); choose another architecture"
        )


def _folder(model: str) -> Path | None:
    """The folder that `model` names, with or without timm's prefix; None for an architecture's name."""
    if model.startswith(LOCAL_DIR):
        return Path(model.removeprefix(LOCAL_DIR))
    return Path(model) if "/" in model or "\\" in model else None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["architecture"], config["pretrained_cfg"]["input_size"][-1]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a folder of a timm model: {CONFIG_FILE} is missing or lacks architecture and "
            f"pretrained_cfg.input_size ({_first_line(error)}); give such a folder or the name of a timm architecture"
        ) from error
    return config


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
