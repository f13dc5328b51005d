"""The `datasets` library's forms: folders of each kind, and a hub on this machine that it loads from."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_hub import COMMIT, Mirror
from PIL import Image

from sweeper.datasets._arrow_files import image_row, open_table
from sweeper.datasets.huggingface import Config, decode, index, known_classes
from sweeper.errors import InputError

REPOSITORY = Path(__file__).parents[2]
NAMES = ["ant", "bee"]


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 3), (number, 9, 9))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, count: int, first: int = 0) -> None:
    """As the hub's own converter writes it: the picture `first + row`, and a ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first + row), "path": None} for row in range(count)]
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"image": pa.array(images, kind), "label": pa.array([row % 2 for row in range(count)], pa.int64())}
    )
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)


def parquet_folder(root: Path) -> Path:
    write_parquet(root / "data" / "train-00000-of-00002.parquet", 12)
    write_parquet(root / "data" / "train-00001-of-00002.parquet", 8, first=12)
    write_parquet(root / "data" / "test-00000-of-00001.parquet", 6, first=100)
    return root


def image_folder(root: Path) -> Path:
    for split, count, first in (("train", 10, 0), ("test", 3, 100)):
        for number in range(2 * count):
            place = root / split / NAMES[number % 2] / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture(first + number).save(place)
    return root


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def at(name: Path | str, **more: Any) -> Config:
    return Config.model_validate({"name": str(name), **more})


def refusal(name: Path | str, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        index(at(name, **more), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.name: {name}: ")
    assert "\n" not in message
    return message


def reds(config: Config, sources: Sequence[str]) -> list[int]:
    images = decode(config, sources)
    assert all(isinstance(image, Image.Image) for image in images), images
    return [image.getpixel((0, 0))[0] for image in images]  # type: ignore[union-attr,index,misc]


# ------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_parquet_files(tmp_path: Path, streaming: bool) -> None:
    config = at(parquet_folder(tmp_path / "set"), streaming=streaming)
    found = index(config, 0)
    assert found.class_names == ("ant", "bee")
    assert found.split_counts() == {"train": 16, "val": 4, "test": 6}
    assert reds(config, found.sources) == [*range(20), *range(100, 106)]
    assert found.labels.tolist() == [0, 1] * 13
    order = np.random.default_rng(0).permutation(26)
    assert reds(config, [found.sources[row] for row in order]) == [[*range(20), *range(100, 106)][row] for row in order]


def test_streaming_and_not_are_the_same_samples_of_a_disk(tmp_path: Path) -> None:
    """Which files hold them differs, and so does what names them; their bytes do not."""
    folder = parquet_folder(tmp_path / "set")
    assert index(at(folder), 0).splits == index(at(folder, streaming=True), 0).splits
    assert index(at(folder), 0).sample_ids[0] == "train#0"
    assert index(at(folder, streaming=True), 0).sample_ids[0] == "data/train-00000-of-00002.parquet#0"


def test_a_folder_of_images(tmp_path: Path) -> None:
    config = at(image_folder(tmp_path / "set"))
    found = index(config, 0)
    assert found.class_names == ("ant", "bee")
    assert found.split_counts() == {"train": 16, "val": 4, "test": 6}
    shown = dict(zip(reds(config, found.sources), found.labels.tolist(), strict=True))
    assert shown == {first + n: n % 2 for first, count in ((0, 20), (100, 6)) for n in range(count)}
    assert "streaming reads parquet files, and these are read by 'imagefolder'" in refusal(
        tmp_path / "set", streaming=True
    )


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    parts = {}
    for split, count, first in (("train", 20, 0), ("valid", 4, 50), ("extra", 2, 90)):
        rows = {
            "image": [{"bytes": png(first + n), "path": None} for n in range(count)],
            "label": [0, 1] * (count // 2),
        }
        parts[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all", num_shards={"train": 3, "valid": 1, "extra": 1})
    config = at(tmp_path / "all")
    found = index(config, 0)
    assert found.class_names == ("ant", "bee")
    assert found.split_counts() == {"train": 16, "val": 4, "test": 4}
    assert reds(config, found.sources) == [*range(20), *range(50, 54)]
    parts["train"].shuffle(seed=0).select(range(10)).save_to_disk(tmp_path / "one")
    assert index(at(tmp_path / "one"), 0).split_counts() == {"train": 6, "val": 2, "test": 2}
    moved = (tmp_path / "all").rename(tmp_path / "moved")
    assert index(at(moved), 0).content == found.content


def test_splits_are_those_that_are_asked_for(tmp_path: Path) -> None:
    for name, count in (("train", 8), ("test", 6), ("unlabeled", 4)):
        write_parquet(tmp_path / "set" / "data" / f"{name}-0.parquet", count)
    folder = tmp_path / "set"
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: data/{name}-0.parquet\n" for name in ("train", "test", "unlabeled"))
        + "---\n"
    )
    assert index(at(folder, streaming=True), 0).split_counts() == {"train": 6, "val": 2, "test": 6}
    chosen = at(folder, streaming=True, splits={"train": "test", "val": "train"})
    assert index(chosen, 0).split_counts() == {"train": 4, "val": 8, "test": 2}
    message = refusal(folder, streaming=True, splits={"train": "tarin"})
    assert "no split tarin (`dataset.splits`); it has train, test, unlabeled" in message
    with pytest.raises(ValueError, match="needs `train`, and another split"):
        at(folder, splits={"train": "train", "val": "train"})


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    for folder in (parquet_folder(tmp_path / "a"), image_folder(tmp_path / "b")):
        link = tmp_path / f"link-{folder.name}"
        link.symlink_to(folder)
        config = at(link, streaming=folder.name == "a")
        assert len(reds(config, index(config, 0).sources)) == 26


def test_a_split_without_labels_can_be_left_out(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "set")
    test = folder / "data" / "test-00000-of-00001.parquet"
    table = pq.read_table(test)
    pq.write_table(table.set_column(1, "label", pa.array([-1] * len(table))), test)
    assert "label -1 in data/test-00000-of-00001.parquet#0" in refusal(folder, streaming=True)
    found = index(at(folder, streaming=True, splits={"train": "train"}), 0)
    assert found.split_counts() == {"train": 12, "val": 4, "test": 4}


# ------------------------------------------------------------------------------------------------- refusals


def test_a_file_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "elsewhere.parquet", 8)
    folder = parquet_folder(tmp_path / "set")
    text = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ../elsewhere.parquet\n---\n"
    )
    (folder / "README.md").write_text(text)
    assert "elsewhere.parquet lies elsewhere" in refusal(folder, streaming=True)


def test_what_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "set")
    assert "no column 'img' in train; did you mean" in refusal(folder, image="img") or "no column 'img'" in refusal(
        folder, image="img"
    )
    assert "2 classes (ant, bee), but `dataset.num_classes` says 10" in refusal(folder, num_classes=10)
    assert "cannot be loaded: ValueError: BuilderConfig 'nope' not found" in refusal(folder, config="nope")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded: EmptyDatasetError" in refusal(tmp_path / "empty")
    assert known_classes(at(folder)) is None
    assert known_classes(at(folder, num_classes=2)) == 2


def test_files_of_other_forms_are_never_loaded(tmp_path: Path) -> None:
    """A reader of `datasets` for pickles would run what they say."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "train.csv").write_text("image,label\nx,1\n")
    (tmp_path / "b" / "train.pkl").write_bytes(pickle.dumps(_Trap(str(tmp_path / "ran"))))
    for streaming in (False, True):
        message = refusal(tmp_path / "a", streaming=streaming)
        assert "read by datasets' 'csv'; allowed: parquet, arrow, imagefolder" in message
        refusal(tmp_path / "b", streaming=streaming)
    assert not (tmp_path / "ran").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_script_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_a_saved_datasets_files_lie_in_its_folder(tmp_path: Path) -> None:
    import datasets

    rows = {"image": [{"bytes": png(n), "path": None} for n in range(10)], "label": [0, 1] * 5}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert len(index(at(tmp_path / "saved"), 0)) == 10
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.rename(tmp_path / "other.arrow")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace(file.name, "../other.arrow"))
    assert "other.arrow lies elsewhere; save it with its files" in refusal(tmp_path / "saved")


def write_saved(folder: Path, table: pa.Table, features: dict[str, Any]) -> None:
    """What `save_to_disk` writes, but with a table of any content."""
    folder.mkdir(exist_ok=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "f", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_pickled_objects_in_a_column_are_refused_unread(tmp_path: Path) -> None:
    """Ray Data's own column type, whose values are pickles, beside the bytes of an image."""
    import ray.data  # noqa: F401  registers the type, as every `sweeper run` does
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    kind = ArrowPythonObjectType()
    trap = pa.array([pickle.dumps(_Trap(str(tmp_path / "ran")))] * 10, kind.storage_type)
    paths = pa.ExtensionArray.from_storage(kind, trap)
    image = pa.StructArray.from_arrays([pa.array([None] * 10, pa.binary()), paths], ["bytes", "path"])
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    write_saved(tmp_path / "saved", pa.table({"image": image, "label": [0, 1] * 5}), features)
    refusal(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(pa.ArrowInvalid, match="has a type of its own"):
        image_row(open_table(str(tmp_path / "saved" / "data-00000-of-00001.arrow")), "image", 0)
    assert not (tmp_path / "ran").exists()


def test_an_image_may_not_be_a_path_to_elsewhere(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    picture(1).save(tmp_path / "secret.png")
    for path in (str(tmp_path / "secret.png"), str(tmp_path / "saved" / ".." / "secret.png")):
        rows = {"image": [{"bytes": png(1), "path": "x"}] * 9 + [{"bytes": None, "path": path}], "label": [0, 1] * 5}
        data = datasets.Dataset.from_dict(rows, features=features)
        # Written as somebody would who means harm: the library itself would put the bytes in.
        write_saved(tmp_path / "saved", data.data.table, features.to_dict())
        assert "secret.png is not in the dataset's folder" in refusal(tmp_path / "saved")


# ------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Mirror]:
    folder = parquet_folder(tmp_path / "hub" / "cifar")
    folder.joinpath("README.md").write_text("---\nlicense: mit\n---\n# A small set\n")
    mirror = Mirror({"uoft-cs/cifar2": folder, "some/images": image_folder(tmp_path / "hub" / "images")})
    yield mirror
    mirror.close()


ASKED = """
import json, sys
from sweeper.datasets import huggingface
from sweeper.errors import SweeperError
for settings in json.loads(sys.argv[1]):
    try:
        config = huggingface.Config(**settings)
        found = huggingface.index(config, 0)
        images = huggingface.decode(config, found.sources)
        reds = [image.getpixel((0, 0))[0] if not isinstance(image, Exception) else repr(image) for image in images]
        print(json.dumps([list(found.class_names), found.split_counts(), reds, found.content, found.sources[0]]))
    except SweeperError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def ask(endpoint: str, home: Path, *settings: dict[str, Any], **environment: str) -> list[Any]:
    """In a process of its own, since the hub's client reads its endpoint once."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(REPOSITORY), **environment}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
        if name not in environment:
            env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", ASKED, json.dumps(settings)], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_is_streamed_by_row_group_and_copied_whole(hub: Mirror, tmp_path: Path) -> None:
    cifar = {"name": "uoft-cs/cifar2"}
    streamed, copied, images, absent = ask(
        hub.endpoint,
        tmp_path / "home",
        {**cifar, "streaming": True},
        cifar,
        {"name": "some/images"},
        {"name": "no/such"},
    )
    for names, counts, reds_, _, _ in (streamed, copied):
        assert names == NAMES
        assert counts == {"train": 16, "val": 4, "test": 6}
        assert reds_ == [*range(20), *range(100, 106)]
    assert streamed[4] == f"hub:datasets/uoft-cs/cifar2@{COMMIT}/data/train-00000-of-00002.parquet#0"
    assert copied[4].startswith(f"arrow:{tmp_path}/home/datasets/")
    assert sorted(images[2]) == [*range(20), *range(100, 106)]
    assert absent[0] == "InputError"
    assert "dataset.name: no/such: cannot be loaded: DatasetNotFoundError" in absent[1]


@pytest.mark.slow
def test_what_was_loaded_before_needs_no_hub(hub: Mirror, tmp_path: Path) -> None:
    cifar = {"name": "uoft-cs/cifar2"}
    (copied,) = ask(hub.endpoint, tmp_path / "home", cifar)
    missing, again = ask(hub.endpoint, tmp_path / "home", {"name": "no/such"}, cifar, HF_HUB_OFFLINE="1")
    assert missing[0] == "RunFailed"
    assert "dataset.name: no/such: the hub can not be reached" in missing[1]
    assert again == copied
