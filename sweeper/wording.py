"""How a message shows names and values that are not ours: on one line, of bounded length, nothing unprintable."""

from __future__ import annotations

MAX_SHOWN = 500


def one_line(text: str, limit: int = MAX_SHOWN) -> str:
    r"""Unprintable characters as Python writes them (`\n`, `\x1b`), other alphabets as they are; a long end is cut."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."
