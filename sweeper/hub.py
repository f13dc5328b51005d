"""Whether weights of a model hub are on this machine already, or could be fetched now; nothing is downloaded."""

from __future__ import annotations

from typing import Literal

from sweeper.architecture import WEIGHTS_FILE

PATIENCE_S = 3.0
Found = Literal["cached", "reachable", "absent"]


def find(repository: str, file: str = WEIGHTS_FILE) -> Found:
    """Look in the hub's cache, then ask the hub for the file's size, once and not for long.

    What the environment says of the hub counts: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, file), str):
        return "cached"
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=PATIENCE_S)
    except Exception:  # offline by wish, no network, no such file, no right: each has types of its own
        return "absent"
    return "reachable"
