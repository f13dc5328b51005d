"""Parquet datasets: image and label columns as people and the hub write them, splits, refusals, decoding."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeper.datasets import _parquet_rows
from sweeper.datasets.parquet import Config, decode, index
from sweeper.errors import InputError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path, labels: Sequence[Any], *, first: int = 0, struct: bool = True, group: int = 7, **columns: Any
) -> Path:
    """A file whose row `r` holds the picture `png(first + r)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[Any] = [png(first + row) for row in range(len(labels))]
    if struct:
        images = [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)]
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path, row_group_size=group)
    return path


def at(path: Path | str, **more: object) -> Config:
    return Config.model_validate({"path": str(path), **more})


TWENTY = [0, 1] * 10


# ------------------------------------------------------------------------------------------------- labels


def test_integer_labels_are_named_by_their_numbers(tmp_path: Path) -> None:
    found = index(at(write(tmp_path / "a.parquet", TWENTY)), 0)
    assert found.class_names == ("0", "1")
    assert found.labels.tolist() == TWENTY
    assert found.sample_ids[:2] == ["a.parquet#0", "a.parquet#1"]
    assert found.sources[19] == f"{tmp_path}/a.parquet#19"
    assert Counter(zip(found.labels.tolist(), found.splits, strict=True)) == {
        (0, "train"): 6,
        (0, "val"): 2,
        (0, "test"): 2,
        (1, "train"): 6,
        (1, "val"): 2,
        (1, "test"): 2,
    }


def test_string_labels_are_sorted(tmp_path: Path) -> None:
    texts = ["dog", "cat"] * 10
    for labels in (texts, pa.array(texts).dictionary_encode(), pa.array(texts, pa.large_string())):
        found = index(at(write(tmp_path / "a.parquet", labels)), 0)
        assert found.class_names == ("cat", "dog")
        assert found.labels.tolist() == [1, 0] * 10
    named = index(at(tmp_path / "a.parquet", class_names=["dog", "cat"]), 0)
    assert named.labels.tolist() == [0, 1] * 10


def test_given_class_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(TWENTY, pa.uint8()))
    assert index(at(path, class_names=["cat", "dog"]), 0).class_names == ("cat", "dog")


def test_numbers_with_gaps_keep_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [7, 3, 900, 7, 10**12] * 4)
    found = index(at(path), 0)
    assert found.class_names == ("3", "7", "900", str(10**12))
    assert found.labels.tolist() == [1, 0, 2, 1, 3] * 4
    assert found.labels.dtype == np.int64


def test_the_hubs_names_without_a_row_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 2] * 5)
    features = {"label": {"names": ["ant", "bee", "cow", "dog"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    found = index(at(path), 0)
    assert found.class_names == ("ant", "cow")
    assert found.labels.tolist() == [0, 1] * 5
    assert "no row has the label 1 (y), 3 (w)" in refusal(path, class_names=["x", "y", "z", "w"])


def test_class_names_differ() -> None:
    with pytest.raises(ValueError, match="cat: given twice"):
        at("x", class_names=["cat", "dog", "cat"])


def test_class_label_of_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY)
    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert index(at(path), 0).class_names == ("ant", "bee")
    assert index(at(path, class_names=["x", "y"]), 0).class_names == ("x", "y")


# ------------------------------------------------------------------------------------------------- files and splits


def test_folder_glob_and_file_name_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path / "d" / "b.parquet", TWENTY, first=20)
    write(tmp_path / "d" / "a.parquet", TWENTY)
    write(tmp_path / "d" / ".cache" / "c.parquet", TWENTY)
    folder, pattern = index(at(tmp_path / "d"), 0), index(at(f"{tmp_path}/d/*.parquet"), 0)
    assert folder.sample_ids == pattern.sample_ids
    assert folder.sample_ids[0] == "a.parquet#0"
    assert folder.sample_ids[-1] == "b.parquet#19"
    assert folder.content == pattern.content
    assert len(folder) == 40


def test_splits_of_hub_file_names(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", TWENTY)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", TWENTY)
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", [0, 1])
    found = index(at(tmp_path), 0)
    assert found.split_counts() == {"train": 34, "val": 2, "test": 6}
    write(tmp_path / "data" / "test" / "0.parquet", [1, 1, 0])
    assert index(at(tmp_path), 0).split_counts() == {"train": 40, "val": 2, "test": 3}
    only = index(at(tmp_path / "data" / "train-0000*.parquet"), 0)
    assert only.split_counts() == {"train": 28, "val": 6, "test": 6}


def test_split_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY, part=["train"] * 14 + ["Validation"] * 4 + ["test"] * 2)
    found = index(at(path, split="part"), 0)
    assert found.splits == ["train"] * 14 + ["val"] * 4 + ["test"] * 2


def test_identity_is_independent_of_the_place_and_follows_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "x" / "a.parquet", TWENTY)
    before = index(at(path), 0)
    (tmp_path / "y").mkdir()
    shutil.copy(path, tmp_path / "y" / "a.parquet")
    assert index(at(tmp_path / "y" / "a.parquet"), 0).content == before.content
    write(path, TWENTY, group=3, struct=False)  # the same pictures, stored in another way
    assert index(at(path), 0).content == before.content
    write(path, TWENTY, first=1)
    assert index(at(path), 0).content != before.content
    write(path, [1, 0] * 10)
    assert index(at(path), 0).content != before.content


# ------------------------------------------------------------------------------------------------- refusals


def refusal(path: Path | str, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        index(at(path, **more), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.path: {path}: ")
    assert "\n" not in message
    return message


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "no.parquet")
    assert "no file matches" in refusal(f"{tmp_path}/*.parquet")
    assert "no *.parquet file in the folder; for folders of images use `kind: image_folder`" in refusal(tmp_path)


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing else PAR1")
    assert "a.parquet cannot be read as parquet" in refusal(tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "no row in a.parquet" in refusal(tmp_path / "a.parquet")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY, extra=TWENTY)
    assert "no column 'lable' in a.parquet; did you mean 'label'? (it has image, label, extra;" in refusal(
        path, label="lable"
    )
    assert "set `dataset.image`" in refusal(path, image="picture")
    assert "no column 'split'" in refusal(path, split="split")


def test_wrong_types(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0.5, 1.0] * 10)
    assert "column 'label' of a.parquet is double; label must be an integer or a string" in refusal(path)
    assert "column 'label' of a.parquet is double; image must be binary" in refusal(path, image="label")
    assert "split must be a string" in refusal(write(path, TWENTY, part=TWENTY), split="part")


def test_null_names_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1, None, 1])
    assert "column 'label' is null in a.parquet#2" in refusal(path)
    images = [png(0)] * 1500 + [None]
    pq.write_table(pa.table({"image": images, "label": [0] * 1501}), path)
    assert "column 'image' is null in a.parquet#1500" in refusal(path)
    pq.write_table(
        pa.table({"image": [{"bytes": None, "path": "x.png"}, {"bytes": png(0), "path": ""}], "label": [0, 1]}), path
    )
    assert "column 'image' is null in a.parquet#0" in refusal(path)


def test_a_name_without_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY)
    assert "no row has the label 2 (eel); leave these names out" in refusal(path, class_names=["a", "b", "eel"])


def test_labels_out_of_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [0, 1, 0, -1])
    assert "label -1 in a.parquet#3; labels start at 0" in refusal(path)
    path = write(tmp_path / "a.parquet", [0, 1, 2] * 4)
    assert "label 2 in a.parquet#2, but there are 2 class names (0 to 1)" in refusal(path, class_names=["a", "b"])
    path = write(tmp_path / "a.parquet", ["cat", "dgo"] * 4)
    assert "label 'dgo' in a.parquet#1 is not in `dataset.class_names`; did you mean 'dog'?" in refusal(
        path, class_names=["cat", "dog"]
    )


def test_files_that_disagree(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", TWENTY)
    write(tmp_path / "b.parquet", ["cat", "dog"] * 5)
    assert "a.parquet has int64, b.parquet has string" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5_000, "~nobody-of-this-name/x.parquet"])
def test_no_path_at_all(path: str) -> None:
    with pytest.raises(InputError, match=r"^dataset\.path: .*: not a path: "):
        index(at(path), 0)


def test_too_few(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["cat"] * 9 + ["dog"] * 2)
    assert "too few images to be in each of train, val, test: dog (2)" in refusal(path)
    assert "one class only (cat)" in refusal(write(path, ["cat"] * 9))
    assert "one class only (7)" in refusal(write(path, [7] * 9))


def test_a_thousand_classes_of_one_image(tmp_path: Path) -> None:
    """They can be split by the user alone: nothing can be taken from a class of one."""
    names = [f"class {number:03d}" for number in range(1000)]
    path = write(tmp_path / "a.parquet", names, group=1000)
    assert "each of train, val, test: class 000 (1), " in refusal(path)
    assert "and 992 more; a class needs at least 3" in refusal(path)
    parts = ["train"] * 1000 + ["val", "test"]
    found = index(at(write(path, [*names, names[0], names[1]], part=parts, group=1000), split="part"), 0)
    assert (len(found.class_names), found.split_counts()) == (1000, {"train": 1000, "val": 1, "test": 1})


def test_unknown_and_half_named_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY, part=["train"] * 19 + ["dev"])
    assert "split 'dev' in a.parquet#19 is not one; allowed: train, val, valid, validation, test" in refusal(
        path, split="part"
    )
    write(tmp_path / "test.parquet", TWENTY)
    write(tmp_path / "train.parquet", TWENTY)
    assert "a.parquet names no split while other files name test, train" in refusal(tmp_path)


def test_class_that_train_lacks(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat", "dog"] * 4)
    write(tmp_path / "test.parquet", ["cat", "eel"] * 4)
    assert "eel (test): no training image" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("struct", [True, False])
def test_decode_in_any_order(tmp_path: Path, struct: bool) -> None:
    write(tmp_path / "a.parquet", TWENTY, struct=struct)
    write(tmp_path / "b.parquet", TWENTY, first=300, struct=struct)
    config = at(tmp_path)
    sources = index(config, 0).sources
    order = np.random.default_rng(0).permutation(40)
    images = decode(config, [sources[row] for row in order])
    expected = [row if row < 20 else 280 + row for row in order]
    assert [image.getpixel((1, 1)) for image in images] == [(n % 256, n // 256, 9) for n in expected]
    assert decode(config, []) == []


def test_each_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", TWENTY, group=5)
    read: list[int] = []
    real = pq.ParquetFile.read_row_group

    def spy(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return real(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    _parquet_rows._row_group.cache_clear()
    config = at(path)
    decode(config, [f"{path}#{row}" for row in (11, 3, 12, 0, 4)])
    assert sorted(read) == [0, 2]
    for row in range(5, 15):
        decode(config, [f"{path}#{row}"])
    assert read[2:] == [1, 2]


def test_what_cannot_be_read_comes_back_as_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", TWENTY)
    table = pq.read_table(path)
    images = [{"bytes": b"junk", "path": ""}, *table["image"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "image", pa.array(images, table["image"].type)), path)
    answers = decode(at(path), [f"{path}#0", f"{path}#1", f"{path}#20", f"{tmp_path}/gone.parquet#0"])
    assert [isinstance(answer, Exception) for answer in answers] == [True, False, True, True]
    assert "row 20 of 20" in str(answers[2])
