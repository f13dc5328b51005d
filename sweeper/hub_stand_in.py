"""Random weights in a folder of the form of the hub's cache, so that timm loads them as it would the real ones."""

from __future__ import annotations

from pathlib import Path

from sweeper.architecture import WEIGHTS_FILE, quiet_timm
from sweeper.errors import InputError

REVISION = "0" * 40


def lay(cache: Path, model: str) -> None:
    """Put weights for `timm.create_model(model, pretrained=True)` under `cache`, a `HF_HUB_CACHE`.

    Raises:
        InputError: timm has no weights of that name on the hub.
    """
    from safetensors.torch import save_file

    with quiet_timm() as timm:
        described = timm.get_pretrained_cfg(model)
        if described is None or not described.hf_hub_id:
            raise InputError(f"trial.student.init: pretrained, but timm has no weights of {model!r} on the hub")
        made = timm.create_model(model)
        folder = cache / f"models--{described.hf_hub_id.replace('/', '--')}"
        snapshot = folder / "snapshots" / REVISION
        snapshot.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(REVISION, encoding="utf-8")
        weights = {name: value.contiguous() for name, value in made.state_dict().items()}
        save_file(weights, snapshot / (described.hf_hub_filename or WEIGHTS_FILE), metadata={"format": "pt"})
