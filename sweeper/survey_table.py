"""A survey as a table for people, and the sentences about what is odd: what to mend before time is spent on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sweeper.datasets import SPLITS, shorten
from sweeper.pixels import MAX_UNREADABLE
from sweeper.survey import MOST_LOOKED, Survey
from sweeper.tables import TextTable, plain
from sweeper.wording import one_line

FEW_IMAGES = 5  # of a class in train: below, its accuracy is luck
UNEVEN = 10  # times as many images in the largest class as in the smallest
FEW_EVALUATED = 100  # images of val or test: one more or less is a percent
EXAMPLES = 5
NO_CLASSES = re.compile(
    r"(images?|img|imgs|photos?|pictures?|pics?|data(set)?|files?|folder|new[ _-]?folder.*|untitled.*|unsorted|misc|"
    r"other|others|unknown|todo|temp|tmp|backup|old|trash|delete|copy.*)",
    re.IGNORECASE,
)


def table(survey: Survey) -> TextTable:
    """A row for each split."""
    rows = [_cells(survey, split) for split in SPLITS if split in survey.index.splits]
    headers = ("split", "images", "classes", "smallest class", "largest class", "median size", "from", "to", "grey")
    return TextTable(headers, tuple(rows), frozenset({"images", "classes", "median size", "from", "to", "grey"}))


def _cells(survey: Survey, split: str) -> tuple[str, ...]:
    counts = {name: count for name, count in survey.class_counts(split).items() if count}
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    sizes = survey.sizes(split)
    looks = [look for row, look in survey.looks.items() if survey.index.splits[row] == split and not look.error]
    grey = sum(look.is_grey for look in looks)
    return (
        split,
        f"{sum(counts.values()):,}",
        str(len(counts)),
        f"{counts[least]:,} {one_line(least, 24)}",
        f"{counts[most]:,} {one_line(most, 24)}",
        *(f"{w} x {h}" for w, h in ((sizes[len(sizes) // 2], sizes[0], sizes[-1]) if len(sizes) else ())),
        *(["-"] * 3 if not len(sizes) else []),
        f"{grey / len(looks):.0%}" if looks else "-",
    )


def remarks(survey: Survey) -> Iterator[str]:
    """What the table does not show, the odd things last; a line that begins with two blanks is an example."""
    if formats := survey.formats:
        yield "formats: " + ", ".join(f"{count:,} {ending.lstrip('.')}" for ending, count in formats.items())
    if survey.drawn:
        yield f"{' and '.join(survey.drawn)}: not in the data; taken from train by the seed, of each class alike"
    if not survey.is_whole:
        yield f"looked at {MOST_LOOKED:,} of {len(survey.index):,} images, evenly drawn; the run looks at all of them"


def warnings(survey: Survey) -> Iterator[str]:
    """What should be mended, or known, before the first run; examples are indented."""
    yield from _unreadable(survey)
    yield from _leaks(survey)
    conflicts = survey.twice(in_one_class=False)
    if conflicts:
        yield f"the same picture in several classes: {len(conflicts)}; keep each under the class that it is"
        yield from _examples([" and ".join(names) for names in conflicts])
    twice = [names for names in survey.twice(in_one_class=True) if len({_split(survey, name) for name in names}) == 1]
    if twice:
        extra = sum(len(names) - 1 for names in twice)
        yield f"copies of a picture within its split: {extra}; harmless but for the time that they take"
        yield from _examples([" and ".join(names) for names in twice])
    yield from _small(survey)
    yield from _names(survey)


def _unreadable(survey: Survey) -> Iterator[str]:
    lost = survey.unreadable
    if not lost:
        return
    share = len(lost) / len(survey.looks)
    verdict = "the run leaves them out"
    if share > MAX_UNREADABLE:
        verdict = f"more than {MAX_UNREADABLE:.0%}, at which a run stops: repair or delete them first"
    yield f"images that can not be read: {len(lost)} of {len(survey.looks):,} ({share:.1%}); {verdict}"
    yield from _examples([f"{name}: {why}" for name, why in lost])


def _leaks(survey: Survey) -> Iterator[str]:
    for found in survey.shared:
        one, other = found["splits"]
        mend = "delete one of each pair" if other in survey.drawn else f"take them out of {one} or of {other}"
        yield f"pictures of {other} that are in {one}, too, and flatter its accuracy: {found['count']}; {mend}"
        yield from _examples([f"{second} is {first}" for first, second in found["examples"]])


def _small(survey: Survey) -> Iterator[str]:
    counts = survey.class_counts("train")
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEW_IMAGES]
    if few:
        yield f"classes with fewer than {FEW_IMAGES} training images: {shorten(few)}; add images or leave them out"
    least, most = min(counts.values()), max(counts.values())
    if most > UNEVEN * max(least, 1):
        yield (
            f"the largest class has {most / max(least, 1):.0f} times the images of the smallest: accuracy is mostly "
            "that of the large ones"
        )
    for split in SPLITS[1:]:
        if (count := survey.index.splits.count(split)) < FEW_EVALUATED:
            yield f"{split} has {count} images: one of them is {1 / count:.1%} of its accuracy"


def _names(survey: Survey) -> Iterator[str]:
    names = survey.index.class_names
    odd = [name for name in names if NO_CLASSES.fullmatch(name.strip())]
    if odd:
        yield f"folders that do not sound like classes: {shorten(odd)}; each folder counts as a class"
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"[\W_]+", "", name).casefold(), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            yield f"classes whose names hardly differ: {shorten(same)}; are they one?"
    if all(name.strip().isdigit() for name in names):
        yield "class names are numbers: synthetic images from a text, and a CLIP as teacher, need words"


def _split(survey: Survey, name: str) -> str:
    return survey.index.splits[survey.index.sample_ids.index(name)]


def _examples(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:EXAMPLES]:
        yield f"  {one_line(plain(line), 160)}"
    if len(lines) > EXAMPLES:
        yield f"  and {len(lines) - EXAMPLES:,} more"
