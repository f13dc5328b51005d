"""Which timm model a student's settings name: an architecture or a folder, and whether it can be had.

Asks timm and reads a folder's `config.json`; builds nothing and needs no torch of its own.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import InputError

if TYPE_CHECKING:
    from sweeper.trial import StudentConfig

LOCAL_DIR = "local-dir:"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Decided by the dataset, by `init` or by the form of the wrapper, hence not free for `model_args`.
RESERVED_ARGS = frozenset(
    {"num_classes", "img_size", "in_chans", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    | {"checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit"}
)


def check(config: StudentConfig) -> None:
    """Refuse a model that does not exist, or arguments that are not free, without building anything.

    Raises:
        InputError: naming the nearest architectures.
    """
    taken = sorted(RESERVED_ARGS.intersection(config.model_args))
    if taken:
        raise InputError(f"trial.student.model_args: sweeper decides {', '.join(taken)}; leave it out")
    folder = folder_of(config.model)
    if folder is not None:
        read_config(folder)
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


def folder_of(model: str) -> Path | None:
    """The folder that `model` names, with or without timm's prefix; None for an architecture's name."""
    if model.startswith(LOCAL_DIR):
        return Path(model.removeprefix(LOCAL_DIR))
    return Path(model) if "/" in model or "\\" in model else None


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["architecture"], config["pretrained_cfg"]["input_size"][-1]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a folder of a timm model: {CONFIG_FILE} is missing or lacks architecture and "
            f"pretrained_cfg.input_size ({first_line(error)}); give such a folder or the name of a timm architecture"
        ) from error
    return config


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
