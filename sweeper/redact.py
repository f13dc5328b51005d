"""Takes secrets out of texts that are shown or kept: credentials of URIs, and values of the environment's secrets."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
_SHORTEST = 8  # a value below that is a switch or a number, and might stand in any text
_NAMES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|_KEY|_KEY_ID)$", re.IGNORECASE)
# An AWS secret may hold slashes, so that after a colon all up to the last @ counts.
_USER = re.compile(r"(?<=://)(?:[^/@\s'\"]+|[^/@:\s'\"]*:[^\s'\"]+)@")
_QUERY = re.compile(r"(?<=[?&;])([\w.-]*(?:token|secret|password|key|signature|sig)[\w.-]*=)[^&;\s'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without secrets; `s3://KEY:SECRET@bucket/path` keeps its bucket and its path.

    What counts in the environment is a variable whose name ends like one of a secret (HF_TOKEN, AWS_SECRET_ACCESS_KEY),
    wherever its value stands.
    """
    secrets = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
