"""The shards that a `path` names: a file, a folder, a glob or `train-{000..010}.tar`, on a disk or by a URI."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.datasets import SPLIT_NAMES, given_path, shorten
from sweeper.datasets._label_column import FileRows
from sweeper.datasets._places import Disk, Place, Remote, fixed_part, is_remote
from sweeper.errors import InputError

MAX_EXPANDED = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Found:
    """A file: its name below the folder that all are relative to, with slashes, and what its place opens."""

    name: str
    source: str


def find(path: str, suffix: str, where: str) -> tuple[Place, list[Found]]:
    """The place and the files, in the order of their names.

    Raises:
        InputError: nothing is there, a shard of a range is missing, or the place cannot be reached.
    """
    place: Place = Remote(path, where) if is_remote(path) else Disk()
    return place, _elsewhere(place, suffix, where) if isinstance(place, Remote) else _on_disk(path, suffix, where)


def _kinds(suffix: str) -> str:
    return f"give a {suffix.lstrip('.')} file, a folder of them, or a glob"


def _no_shards(suffix: str, where: str) -> InputError:
    return InputError(f"{where}: no *{suffix} file in the folder; for folders of images use `kind: image_folder`")


def _on_disk(path: str, suffix: str, where: str) -> list[Found]:
    given = given_path(path, where)
    if given.is_dir():
        visible = (
            p for p in given.rglob(f"*{suffix}") if not any(s.startswith(".") for s in p.relative_to(given).parts)
        )
        files = sorted(file for file in visible if file.is_file())
        if not files:
            raise _no_shards(suffix, where)
        base = given
    elif given.is_file():
        base, files = given.parent, [given]
    elif glob.has_magic(path) or _BRACES.search(path):
        base = Path(fixed_part(str(given))[0] or ("/" if given.is_absolute() else "."))
        chosen: set[Path] = set()
        for pattern in expand(str(given), where):
            matched = [Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file()]
            _check_match(pattern, bool(matched), suffix, where)
            chosen.update(matched)
        files = sorted(chosen)
    else:
        raise InputError(f"{where}: no such file or folder; {_kinds(suffix)}")
    return [Found(file.relative_to(base).as_posix(), str(file.absolute())) for file in files]


def _elsewhere(place: Remote, suffix: str, where: str) -> list[Found]:
    names = list(place.files())
    if not place.pattern:
        if names == [""]:
            return [Found(place.root.rpartition("/")[2], place.root)]
        if not names:
            raise InputError(f"{where}: no such file or folder; {_kinds(suffix)}")
        names = [name for name in names if name.endswith(suffix)]
        if not names:
            raise _no_shards(suffix, where)
    else:
        chosen: set[str] = set()
        for pattern in expand(place.pattern, where):
            wanted = pattern.split("/")
            matched = {pattern} & set(names) or {name for name in names if _matches(name.split("/"), wanted)}
            _check_match(pattern, bool(matched), suffix, where)
            chosen |= matched
        names = sorted(chosen)
    return [Found(name, place.source(name)) for name in names]


def _check_match(pattern: str, matched: bool, suffix: str, where: str) -> None:
    if not matched and glob.has_magic(pattern):
        raise InputError(f"{where}: no file matches; {_kinds(suffix)}")
    if not matched:
        raise InputError(f"{where}: there is no {pattern}; a range has to name the shards that there are")


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """As `glob.glob(..., recursive=True)` matches the parts of a path."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def expand(pattern: str, where: str) -> list[str]:
    """`{000..010}` and `{a,b}` written out, as a shell does.

    Raises:
        InputError: a range that runs backwards, or more than `MAX_EXPANDED` names.
    """
    texts = [pattern]
    while any(_BRACES.search(text) for text in texts):
        longer = []
        for text in texts:
            found = _BRACES.search(text)
            if found is None:
                longer.append(text)
                continue
            longer += [text[: found.start()] + item + text[found.end() :] for item in _items(found[1], where)]
            if len(longer) > MAX_EXPANDED:
                raise InputError(f"{where}: the braces name more than {MAX_EXPANDED:,} files")
        texts = longer
    return texts


def _items(inside: str, where: str) -> Sequence[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        return inside.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if not first <= last < first + MAX_EXPANDED:
        raise InputError(f"{where}: {{{inside}}} is no range; give {{first..last}}, at most {MAX_EXPANDED:,} long")
    width = len(bounds[1]) if bounds[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def given_splits(files: Sequence[FileRows], where: str) -> list[str]:
    """The split column, else the file names where they name more than one split, else "train" for every row."""
    given: list[str] = []
    named = {file.name: split_of_name(file.name) for file in files}
    by_name = len(set(named.values())) > 1
    for file in files:
        if file.splits is not None:
            for row, value in enumerate(file.splits):
                split = SPLIT_NAMES.get(value.lower())
                if split is None:
                    raise InputError(
                        f"{where}: split {value!r} in {file.name}#{row} is not one; allowed: {', '.join(SPLIT_NAMES)}"
                    )
                given.append(split)
            continue
        split = named[file.name] if by_name else "train"
        if split is None:
            others = sorted({name for name in named.values() if name})
            raise InputError(
                f"{where}: {shorten([file.name])} names no split while other files name {', '.join(others)}; rename "
                "it, name a `dataset.split` column (parquet), or give a glob that leaves it out"
            )
        given += [split] * len(file.labels)
    return given


def split_of_name(name: str) -> str | None:
    """The split in a relative path: `train-00000-of-00002.parquet`, `data/test/0.parquet`."""
    for part in reversed(Path(name).with_suffix("").parts):
        found = SPLIT_NAMES.get(re.split(r"[-_.]", part, maxsplit=1)[0].lower())
        if found is not None:
            return found
    return None
