"""Contact sheets: what the training images and each source of synthetic ones look like, on one picture each.

A row a class, labelled, with the first images of it as they are stored. They are written before the search begins,
since people would rather look, and stop a sweep over images that show nothing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from sweeper.files import write_atomically
from sweeper.plan import Plan
from sweeper.store import Record, Store
from sweeper.wording import one_line, spoken

MAX_CLASSES, ACROSS = 12, 10
TILE, GAP, TEXT, LABEL = 64, 4, 13, 150  # pixels: least side of an image, space between, size and most width of text
LARGEST_TILE = 128


def write(folder: Path, plan: Plan, store: Store, records: Mapping[str, Record]) -> list[Path]:
    """`real.png`, of training images, and `synthetic-<source>.png` of each source, in the folder of a run.

    Returns:
        Those that are new. What is there already stays: a run's artifacts do not change.
    """
    new = []
    wanted = {"real": plan.images}
    wanted |= {f"synthetic-{_file_name(source)}": parts[0] for source, parts in plan.synthetic.items() if parts}
    for name, item in wanted.items():
        if not (path := folder / f"{name}.png").exists():
            table = store.read_table(records[item.key])
            size = int(plan.config.dataset.image_size)  # type: ignore[attr-defined]
            write_atomically(path, drawn(rows_of(table, size), plan.index.class_names))
            new.append(path)
    return new


def rows_of(table: pa.Table, size: int) -> dict[int, list[np.ndarray]]:
    """The first `ACROSS` images [H, W, 3] of at most `MAX_CLASSES` labels, evenly chosen from those that are there.

    Of real images those of training, in their order; of synthetic ones by their index.
    """
    labels = table["label"].to_numpy()
    if "split" in table.column_names:
        order = np.flatnonzero(np.array(table["split"].to_pylist()) == "train")
    else:
        order = np.argsort(table["index"].to_numpy(), kind="stable")
    there = np.unique(labels[order])
    chosen = there[np.linspace(0, len(there) - 1, min(MAX_CLASSES, len(there))).round().astype(int)]
    found = {}
    for label in chosen:
        # one by one: pixels of more than 2 GiB can not be sorted or taken from as a whole
        raw = [table["image"][int(row)].as_py() for row in order[labels[order] == label][:ACROSS]]
        found[int(label)] = [np.frombuffer(image, np.uint8).reshape(size, size, 3) for image in raw]
    return found


def drawn(rows: Mapping[int, Iterable[np.ndarray]], class_names: Sequence[str]) -> bytes:
    """The sheet as a PNG; small images are enlarged by whole factors, so that their pixels stay as they are."""
    images = {label: [_tile(image) for image in row] for label, row in rows.items()}
    side = max((tile.width for row in images.values() for tile in row), default=TILE)
    font = ImageFont.load_default(TEXT)
    names = [_fitted(spoken(class_names[label]), font) for label in images]
    left = math.ceil(max(map(font.getlength, names), default=0)) + 2 * GAP
    width = left + max(map(len, images.values()), default=0) * (side + GAP)
    sheet = Image.new("RGB", (width, len(images) * (side + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(zip(names, images.values(), strict=True)):
        top = GAP + number * (side + GAP)
        pen.text((GAP, top + side // 2), name, "black", font, anchor="lm")
        for column, tile in enumerate(row):
            sheet.paste(tile, (left + column * (side + GAP), top))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _file_name(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", source)


def _tile(image: np.ndarray) -> Image.Image:
    side = len(image)
    if side > LARGEST_TILE:
        return Image.fromarray(image).resize((LARGEST_TILE, LARGEST_TILE), Image.Resampling.LANCZOS)
    return Image.fromarray(image).resize((side * math.ceil(TILE / side),) * 2, Image.Resampling.NEAREST)


def _fitted(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A name on one line, cut to the width of the labels."""
    text = one_line(name, 100)
    while text and font.getlength(text) > LABEL:
        text = text.removesuffix("...")[:-1] + "..."
    return text
