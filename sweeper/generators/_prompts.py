"""The text that an image is drawn from: a template with the class's name in words, or a text of the class's own.

Prompts alone move what a model learns from synthetic images (Sariyildiz et al. 2023, arXiv 2212.08420), so that a
source may have several templates: which one an image gets depends on its seed alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from sweeper.errors import InputError
from sweeper.views import counter_uniform
from sweeper.wording import one_line, spoken

PLACEHOLDER = "{label}"
_TEMPLATE = 0x7E47


def text(templates: Sequence[str], class_prompts: Mapping[str, str], name: str, seed: int) -> str:
    """The prompt of one image of class `name`; `seed` is the image's own."""
    if name in class_prompts:
        return class_prompts[name]
    number = int(counter_uniform(seed, _TEMPLATE) * len(templates)) if len(templates) > 1 else 0
    return templates[number].replace(PLACEHOLDER, spoken(name))


def wording(class_prompts: Mapping[str, str], class_names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Classes whose name is said otherwise than with spaces for underscores, which the key of images takes for granted.

    Raises:
        InputError: `class_prompts` names a class that the dataset does not have.
    """
    for name in class_prompts:
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, n=1)
            hint = f"; did you mean {one_line(near[0])!r}?" if near else ""
            raise InputError(f"class_prompts: {one_line(name)!r} is not a class of the dataset{hint}")
    said = {name: spoken(name) for name in class_names if name not in class_prompts}
    changed = {name: words for name, words in said.items() if words != name.replace("_", " ")}
    return {"wording": changed} if changed else {}
