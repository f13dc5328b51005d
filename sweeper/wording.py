"""How names and values that are not ours are shown in a message, and how a class's name is said in a text."""

from __future__ import annotations

import re

MAX_SHOWN = 500
HARD_SPACE = "\xa0"  # at which no line is broken


def one_line(text: str, limit: int = MAX_SHOWN) -> str:
    r"""Unprintable characters as Python writes them (`\n`, `\x1b`), other alphabets as they are; a long end is cut."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def spoken(name: str) -> str:
    """A class's name as a text model reads it: `001.Black_footed_Albatross` is `Black footed Albatross`.

    A number with a dot in front goes (as in CUB-200 and Caltech-256), underscores and runs of spaces become one space,
    and a name without either is taken apart where a capital begins a word (`AnnualCrop` is `Annual Crop`). Initials,
    numbers and names that begin with one or two letters stay as they are (`MD-11`, `iPhone`, `McLaren`), and so does
    the case of every letter. Nothing is guessed beyond that.
    """
    words = re.sub(r"^\d+\.(?=[^\d\s])", "", name).replace("_", " ").split()
    if len(words) == 1:
        words = re.split(r"(?<=[a-z])(?=[A-Z][a-z])", words[0])
        if len(words[0]) <= 2:
            words[:2] = ["".join(words[:2])]
    return " ".join(words) or name
