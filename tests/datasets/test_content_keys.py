"""What a dataset on a disk is known by: pinned, since every artifact made of it is kept under it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeper import registry

# Of these three as they were when the store was first read. Another value makes every user build everything anew.
PINNED = {
    "image_folder": ("root", "images", "389f5a7b3b21f8cceeb4d176c4d8a9d68d947e31b81c0d43e3f302fb61e1ec93"),
    "unlabelled_folder": ("root", "images", "8297afa2ed36738f5a1d6da53d5a36ee3f8733c3de5e4a405667f3efcb874135"),
    "parquet": ("path", "train.parquet", "7b8b5546de7a0c3d290c0727041c5dc7e592f388d300f2099261559965b2cc02"),
}


@pytest.mark.parametrize("kind", PINNED)
def test_a_datasets_key_stays_what_it_was(kind: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(7):
                (folder / f"{number}.png").write_bytes(f"{split}{name}{number}".encode())
    table = pa.table({"image": [f"{number}".encode() for number in range(20)], "label": ["cat", "dog"] * 10})
    pq.write_table(table, tmp_path / "train.parquet")
    key, name, expected = PINNED[kind]
    config = registry.config_class("datasets", kind).model_validate({key: str(tmp_path / name)})
    assert registry.load("datasets", kind).index(config, 3).content == expected
