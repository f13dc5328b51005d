"""Gets a CLIP from open_clip: its description, its weights, its tokenizer, and what its text tower says of classes.

open_clip goes on without weights that it could not fetch, only warns of the wrong activation, and asks the hub for
tokenizers; here each of these is an error that says what to do.
"""

from __future__ import annotations

import difflib
import json
import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import weights
from sweeper.errors import InputError, RunFailed
from sweeper.wording import spoken

if TYPE_CHECKING:
    import torch

    from sweeper.teachers.open_clip import Config

HUB_ID, RANDOM = "hf-hub:", "none"
CONFIG_FILE = "open_clip_config.json"
PLACEHOLDER = "{label}"
FILES = (".safetensors", *weights.PICKLES)
WEIGHTS_FILE = "open_clip_model.safetensors"
SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def is_path(text: str) -> bool:
    """Whether `weights` is a folder or file; no tag has a separator or the end of a file's name."""
    separated = "/" in text or "\\" in text or text.startswith("~")
    return not text.startswith(HUB_ID) and (separated or text.endswith(FILES))


def local_weights(config: Config) -> Path | None:
    """The folder or file that holds the weights; None for the hub and for random ones."""
    if not is_path(config.weights):
        return None
    allowed = (
        f"none, a tag of open_clip, {HUB_ID}ORG/NAME, a .safetensors file, or a folder with {CONFIG_FILE} and "
        f"{WEIGHTS_FILE}"
    )
    return weights.local(config.weights, CONFIG_FILE, trust=config.trust, allowed=allowed)


def name_of(config: Config, path: Path | None) -> str:
    """What open_clip calls the model."""
    if path is not None and path.is_dir():
        return f"local-dir:{path}"
    return config.weights if config.weights.startswith(HUB_ID) else str(config.model)


def model_config(name: str, config: Config) -> dict[str, Any]:
    """open_clip's own description of the architecture.

    Raises:
        InputError: there is none, or no such tag, or its text tower is not open_clip's own.
        RunFailed: the hub did not deliver it.
    """
    import open_clip

    try:
        found: dict[str, Any] | None = open_clip.get_model_config(name)
    except OSError as error:
        raise _not_delivered(config, error) from error
    except ValueError as error:
        raise InputError(f"weights: {config.weights}: {CONFIG_FILE} is not open_clip's: {error}") from error
    if found is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise InputError(f"model: {name!r} is not an open_clip model{hint} (open_clip.list_models() lists them)")
    if not all(isinstance(found.get(part), dict) for part in ("vision_cfg", "text_cfg")) or "embed_dim" not in found:
        raise InputError(f"weights: {config.weights}: {CONFIG_FILE} is not open_clip's: no embed_dim, vision_cfg, ...")
    if "hf_model_name" in found["text_cfg"]:
        raise InputError(
            f"model: the text tower of {name!r} is a model of transformers, and only open_clip's own are read; use "
            "another CLIP"
        )
    if _is_tag(config) and not open_clip.is_pretrained_cfg(name, config.weights):
        tags = open_clip.list_pretrained_tags_by_model(name)
        allowed = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise InputError(f"weights: {config.weights!r} is not a tag of {name!r}; {allowed} (a folder needs a slash)")
    return found


def _is_tag(config: Config) -> bool:
    return config.weights != RANDOM and not config.weights.startswith(HUB_ID) and not is_path(config.weights)


def _not_delivered(config: Config, error: Exception) -> RunFailed:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return RunFailed(
        f"the weights {config.weights!r} of {config.model or 'a CLIP'} could not be fetched from the hub: {reason}; "
        "check the network, or give them as a folder in open_clip's format as weights:"
    )


def create(config: Config, name: str, model_config: dict[str, Any], path: Path | None) -> Any:
    """`open_clip.create_model`, with the user's mistakes turned into InputErrors."""
    import open_clip
    from safetensors import SafetensorError

    how: dict[str, Any] = {"force_image_size": config.input_size} if config.input_size else {}
    if path is not None and path.is_file():
        how["pretrained"] = str(path)
    elif _is_tag(config):
        how |= {"pretrained": config.weights, "force_quick_gelu": _activation(config, name, model_config)}
    guard = nullcontext() if config.trust else weights.safetensors_only(f"weights: {config.weights}")
    try:
        with guard, _quiet():
            return open_clip.create_model(name, require_pretrained=config.weights != RANDOM, **how)
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"weights: {config.weights} can not be read: {str(error).partition(chr(10))[0]}") from error
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError) as error:
        if path is None and config.weights != RANDOM and "loading state_dict" not in str(error):
            raise _not_delivered(config, error) from error
        raise InputError(
            f"weights: {config.weights} does not fit {config.model or 'its own config'}: {error}"
        ) from error


def _activation(config: Config, name: str, model_config: dict[str, Any]) -> bool:
    """Whether the weights of a tag are to be read with QuickGELU, which they say themselves.

    Raises:
        InputError: the model has it and the weights were trained without: open_clip would only warn.
    """
    import open_clip

    is_quick = bool(open_clip.get_pretrained_cfg(name, config.weights).get("quick_gelu", False))
    if model_config.get("quick_gelu", False) and not is_quick:
        plain = name.removesuffix("-quickgelu")
        raise InputError(f"model: {name!r}, but {config.weights!r} was trained without QuickGELU; use {plain!r}")
    return is_quick


def tokenizer(name: str, text_config: dict[str, Any], path: Path | None) -> Any:
    """What turns prompts into tokens: open_clip's own, which comes with it, or one of transformers in the folder.

    Raises:
        InputError: it would have to be fetched, or can not be read.
    """
    import open_clip

    wanted = text_config.get("hf_tokenizer_name")
    if not wanted:
        return open_clip.get_tokenizer(name)
    way_out = "or say adapt: linear_probe, which reads no text"
    if path is None or not path.is_dir():
        raise InputError(
            f"weights: zero-shot with {name!r} needs the tokenizer {wanted!r}, which only a folder may bring: save "
            f"model and tokenizer as one, {way_out}"
        )
    try:
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"weights: {path} has no tokenizer that can be read ({reason}); it needs the package transformers and the "
            f"tokenizer's files in that folder, {way_out}"
        ) from error


def zero_shot(model: Any, tokenizer: Any, prompts: Sequence[str], class_names: Sequence[str]) -> torch.Tensor:
    """Weights [K, D]: of each class the normalised mean of its prompts' normalised embeddings, times the scale."""
    import open_clip
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    templates = [lambda name, prompt=prompt: prompt.replace(PLACEHOLDER, name) for prompt in prompts]
    names = [spoken(name) for name in class_names]
    with torch.no_grad():
        weight_DK = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates, device=device)
        scaled: torch.Tensor = model.logit_scale.exp() * weight_DK.T
    model.to("cpu")
    return scaled.float().cpu().contiguous()


def write_small(folder: Path) -> None:
    """A small CLIP with random weights, as open_clip reads it from a folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**SMALL)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": {}}), encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs each step, by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
