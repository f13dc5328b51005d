"""Secrets in the environment of a sweep, and where any of them turns up afterwards."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED4F7Q2Z9X1",
    "AWS_SECRET_ACCESS_KEY": "pLaNtEd/secret+0Key/9vXw2bQ7tYk3mNz",
    "AWS_SESSION_TOKEN": "FwoGZXIPLANTEDsessiontoken7Hq2Lx==",
    "HF_TOKEN": "hf_PlAnTeDtOkEn8sJd3kLq0Zx",
    "WANDB_API_KEY": "9f3cplanted0d6e1b7a24c58f0a9e3d2b71c6f04",
}


def forms(secret: str) -> Iterator[bytes]:
    """As it is, as in a URI, and as any base64 of a text around it holds it."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    for shift in range(3):
        shifted = base64.b64encode(bytes(shift) + secret.encode())
        yield shifted[4 if shift else 0 : len(shifted) // 4 * 4 - 4]  # without what its neighbours have a part in


def leaks(data: bytes, secrets: Iterable[str]) -> list[str]:
    """Which secrets the bytes hold."""
    return [secret for secret in secrets if any(form in data for form in forms(secret))]


def leaking_files(folders: Iterable[Path], secrets: Iterable[str]) -> dict[str, list[str]]:
    """Files below the folders, with the secrets that their names or bytes hold."""
    secrets, found = list(secrets), dict[str, list[str]]()
    for folder in folders:
        for path in folder.rglob("*"):
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if held := leaks(str(path.relative_to(folder)).encode() + b"\n" + data, secrets):
                found[str(path)] = held
    return found
