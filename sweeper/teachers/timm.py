"""Any timm model: from the hub, from a local folder or state dict, from the zoo, or with random weights.

The weights decide what else is needed. A folder (timm's own format: config.json and model.safetensors) says its
architecture, arguments, classes and preprocessing by itself; a bare state dict needs `model`.
"""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sweeper import weights, zoo
from sweeper.errors import InputError, RunFailed
from sweeper.fingerprint import file_sha256, folder_sha256
from sweeper.teachers import Adapt, ModelSettings

if TYPE_CHECKING:
    import torch

    from sweeper.teachers._timm_module import TimmTeacher

HUB, RANDOM = "hub", "none"
SMALL = "test_resnet"
HUB_IDS = ("hf-hub:", "hf_hub:")  # a model of anybody's on the hub, which says its architecture itself
RANDOM_SEED = 0  # `weights: none` is the same teacher in every process


class Config(ModelSettings):
    """A teacher. `weights: hub`, `none` (random), a folder, a `.safetensors` file, or `zoo:NAME`."""

    kind: Literal["timm"] = "timm"
    model: str | None = None
    weights: str = HUB
    adapt: Adapt = "linear_probe"
    model_args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_an_architecture(self) -> Config:
        bare = (".safetensors", *weights.PICKLES)
        if self.model is None and (self.weights in (HUB, RANDOM) or self.weights.endswith(bare)):
            raise ValueError(
                f"model: weights: {self.weights} needs the name of a timm model; only a folder says its own"
            )
        return self


def identity(config: Config) -> dict[str, Any]:
    """What decides the outputs; a local folder or file counts by its contents, so that it may be moved."""
    path = _local_weights(config)
    named = config.decisive()
    if path is None:
        return {**named, "weights": config.weights}
    if path.is_dir():
        del named["model"]
        return {**named, "weights": {"folder_sha256": folder_sha256(path)}}
    return {**named, "weights": {"file_sha256": file_sha256(path)}}


def check(config: Config) -> None:
    """Refuse a name or a tag that timm does not have; nothing is built and the hub is not asked.

    Raises:
        InputError: naming the nearest models, or the tags that there are.
    """
    import timm

    name = str(config.model)
    if config.model is None or ":" in name:
        return
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise InputError(f"model: {name!r} is not a timm model{hint} (timm.list_models() lists them)")
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        known = f"there are {', '.join(tags)}" if tags else "there are none"
        raise InputError(f"model: {name!r} is not among timm's weights; of that architecture {known}")


def build(config: Config, class_names: Sequence[str]) -> TimmTeacher:
    """The teacher, in eval mode on the CPU, without gradients.

    Raises:
        InputError: no such model or weights, or `adapt: none` without a classifier of these classes.
        RunFailed: the hub did not deliver.
    """
    import torch

    path = _local_weights(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if path is not None and path.is_dir():
            model = _from_folder(config, path)
        elif path is not None:
            model = _from_state_dict(config, path)
        elif config.weights == RANDOM:
            model = _create(config, num_classes=len(class_names))
        else:
            model = _from_hub(config, pretrained=True)
    teacher = _wrapped(model, config)
    if teacher.classes == len(class_names) and teacher.classifier is not None:
        return teacher
    if config.adapt == "none":
        found = f"{teacher.classes} classes" if teacher.classifier is not None else "no linear classifier"
        raise InputError(
            f"adapt: none needs a classifier of the dataset's {len(class_names)} classes, but "
            f"{config.weights if path else config.model} has {found}; use adapt: linear_probe or fine_tune"
        )
    return teacher.without_classifier()


def sketch(config: Config, class_names: Sequence[str]) -> TimmTeacher:
    """The teacher with its architecture's initial weights: no weight is read, of a hub id its config alone.

    For shapes and counts, on torch's meta device where it is built under one.
    """
    path = _local_weights(config)
    if path is not None and path.is_dir():
        config = config.model_copy(update={"model": f"local-dir:{path}"})
    make = _from_hub if str(config.model).startswith(HUB_IDS) else _create
    return _wrapped(make(config, num_classes=len(class_names)), config)


def stand_in(config: Config, folder: Path, num_classes: int) -> Config:
    """For a rehearsal: a small random model of the architecture in place of the hub's; what is here stays itself."""
    from sweeper.teachers._stand_in import cut_down

    if config.weights != HUB or config.model is None:
        return config
    if config.model.startswith(HUB_IDS):  # only the hub could tell which architecture that is
        return config.model_copy(update={"model": SMALL, "weights": RANDOM, "model_args": {}})
    arguments = cut_down(config.model, config.model_args, num_classes=num_classes)
    return config.model_copy(update={"weights": RANDOM, "model_args": arguments})


def _wrapped(model: torch.nn.Module, config: Config) -> TimmTeacher:
    from sweeper.teachers._timm_module import TimmTeacher

    size = config.input_size or config.model_args.get("img_size")
    try:
        return TimmTeacher(model, size)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"input_size: {config.model or config.weights} does not take images of {size} px: {error}"
        ) from None


def flops_an_image(config: Config, class_names: Sequence[str]) -> float | None:
    """Operations of the forward of one image, from the architecture alone."""
    import torch

    from sweeper import flops

    return flops.forward_flops(
        lambda: sketch(config, class_names), lambda t: t(torch.empty(1, len(t.mean), t.input_size, t.input_size))
    )


def _local_weights(config: Config) -> Path | None:
    """The folder or file that holds the weights; None for the hub and for random ones."""
    if config.weights in (HUB, RANDOM):
        return None
    if config.weights.startswith(zoo.PREFIX):
        return zoo.resolve(config.weights)
    allowed = (
        "hub, none, zoo:NAME, a .safetensors file, or a folder with config.json and model.safetensors (timm's "
        "local-dir format)"
    )
    return weights.local(config.weights, "config.json", trust=config.trust, allowed=allowed)


def _from_folder(config: Config, path: Path) -> torch.nn.Module:
    try:
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"weights: {config.weights}: config.json is not timm's: {error!r}") from error
    if config.model not in (None, architecture):
        raise InputError(f"model: {config.model!r}, but {config.weights} holds a {architecture!r}; leave `model` out")
    return _create(config.model_copy(update={"model": f"local-dir:{path}"}), pretrained=True)


def _from_state_dict(config: Config, path: Path) -> torch.nn.Module:
    found = _state_dict(path)
    described: Any = _create(config, num_classes=1)
    head = described.pretrained_cfg.get("classifier")
    head_weight = found.get(f"{head}.weight") if isinstance(head, str) else None
    model = _create(config, num_classes=0 if head_weight is None else len(head_weight))
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise InputError(
            f"weights: {path} does not fit {config.model!r} with model_args {config.model_args}: {error}"
        ) from None
    return model


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; one that is a pickle has been trusted by now, and still may hold tensors alone."""
    from timm.models import load_state_dict

    try:
        found: dict[str, torch.Tensor] = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # safetensors, pickle, zipfile and torch raise types of their own
        raise InputError(f"weights: {path} does not hold weights alone: {str(error).partition(chr(10))[0]}") from error
    return found


def _from_hub(config: Config, **how: Any) -> torch.nn.Module:
    try:
        return _create(config, **how)
    except (OSError, RuntimeError) as error:
        if "No pretrained weights exist" in str(error):
            raise InputError(
                f"model: {config.model!r} has no weights on the hub; use weights: none or a folder"
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunFailed(
            f"{config.model!r} could not be fetched from the hub: {reason}; check the network, or save "
            "the model as a folder (timm's local-dir format) and give it as weights:"
        ) from error


def _create(config: Config, **how: Any) -> torch.nn.Module:
    """`timm.create_model`, with the user's mistakes turned into InputErrors."""
    import timm
    from safetensors import SafetensorError

    check(config)
    name = str(config.model)
    arguments = dict(config.model_args)
    if config.input_size is not None and _fixed_size(name):
        arguments.setdefault("img_size", config.input_size)
    what = f"weights: {config.weights}" if name.startswith("local-dir:") else f"model: {name!r}"
    guard = nullcontext() if config.trust else weights.safetensors_only(what)
    try:
        with guard:
            model: torch.nn.Module = timm.create_model(name, **how, **arguments)
    except (TypeError, AssertionError) as error:
        raise InputError(f"model_args: {config.model_args} does not fit {name!r}: {error}") from None
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"{what}: the weights can not be read: {str(error).partition(chr(10))[0]}") from error
    except (RuntimeError, OSError) as error:
        if name.startswith("local-dir:"):
            raise InputError(f"model: {name!r}: {error}") from None
        raise
    return model


def _fixed_size(name: str) -> bool:
    """Whether the architecture is built for one image size (position embeddings) and must be told of another."""
    import timm

    if ":" in name:
        return False
    return bool(getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "fixed_input_size", False))
