"""Classes of image files: those of the pipeline, every line whole, and nothing of a folder or an image believed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from command_line import NOISE, sweeper
from PIL import Image
from small_student import SIZE, Small

from sweeper import predict as prediction
from sweeper.cli import main
from sweeper.datasets import digits
from sweeper.errors import InputError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(small: Small) -> Path:
    return small.run.path / "models" / "3"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every test image of the digits as it is, in folders of its class."""
    folder, config = tmp_path_factory.mktemp("files"), small_config()
    index = digits.index(config, 0)
    for row, split in enumerate(index.splits):
        if split == "test":
            (image,) = digits.decode(config, [index.sources[row]])
            path = folder / digits.CLASS_NAMES[index.labels[row]] / f"{index.sample_ids[row]}.png"
            path.parent.mkdir(exist_ok=True)
            assert isinstance(image, Image.Image)
            image.save(path)
    return folder


def small_config() -> digits.Config:
    return digits.Config(train_per_class=1)


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def image_at(path: Path, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


class TestWhatItSays:
    def test_files_reach_the_tables_accuracy(self, small: Small, model: Path, files: Path) -> None:
        classifier = prediction.load(model)
        found = list(prediction.predict(classifier, [files]))
        right = [one.path.parent.name == one.classes[0][0] for one in found]
        assert len(found) == len(small.test) == 447
        assert sum(right) / len(right) == small.accuracy
        with torch.no_grad():  # and image by image, as the evaluation sees them
            logits = small.student(small.test.images_BCHW.float().div_(255)).logits_BK
        expected = sorted(zip(small.test.labels_B.tolist(), logits.argmax(dim=1).tolist(), strict=True))
        assert sorted((int(one.path.parent.name), int(one.classes[0][0])) for one in found) == expected

    def test_probabilities_are_the_softmax(self, small: Small, model: Path, tmp_path: Path) -> None:
        path = image_at(tmp_path / "x.png")
        (one,) = prediction.predict(prediction.load(model), [path], top=20)
        assert len(one.classes) == 10, "no more classes than there are"
        shares = [share for _, share in one.classes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        pixels = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1)[None] / 255).float()
        with torch.no_grad():
            softmax = small.student(pixels).logits_BK.softmax(dim=1)[0]
        assert dict(one.classes) == pytest.approx({str(k): float(share) for k, share in enumerate(softmax)}, abs=1e-6)

    def test_an_image_is_upright_and_its_centre_counts(self, model: Path, tmp_path: Path) -> None:
        upright = Image.open(image_at(tmp_path / "a.png", (SIZE, SIZE)))
        exif = Image.Exif()
        exif[0x0112] = 6
        upright.rotate(90).save(tmp_path / "b.png", exif=exif)
        wide = Image.new("RGB", (3 * SIZE, SIZE), "red")
        wide.paste(upright, (SIZE, 0))
        wide.save(tmp_path / "c.png")
        a, b, c = prediction.predict(prediction.load(model), [tmp_path], top=10)
        assert a.classes == b.classes == c.classes

    def test_batches_make_no_difference(self, model: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        classifier, some = prediction.load(model), sorted(files.rglob("*.png"))[:9]
        together = [one.classes[0][0] for one in prediction.predict(classifier, some)]
        monkeypatch.setattr(prediction, "BATCH_SIZE", 2)
        assert [one.classes[0][0] for one in prediction.predict(classifier, some)] == together


class TestTheCommand:
    def test_a_line_an_image_whatever_its_name_is(self, model: Path, tmp_path: Path) -> None:
        """Long, with a line's end, with what colours a terminal, no UTF-8: one line each in the order of the names."""
        names = ["a" * 200 + ".png", "b\n\x1b[31mred.png", os.fsdecode(b"c\xff.png"), "d [bold]x[bold].png"]
        for name in names:
            image_at(tmp_path / name)
        done = sweeper(tmp_path, "predict", str(model), ".", "--top", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert not NOISE.search(done.stdout.replace("\t", ""))
        cells = [line.split("\t") for line in done.stdout.splitlines()]
        shown = ["a" * 200 + ".png", r"b\n\x1b[31mred.png", r"c\udcff.png", "d [bold]x[bold].png"]
        assert [line[0] for line in cells] == shown
        assert all(len(line) == 5 and line[1] in digits.CLASS_NAMES for line in cells)

    def test_json_has_every_name_as_it_is(self, model: Path, tmp_path: Path) -> None:
        path = image_at(tmp_path / "a\nb.png")
        result = predict(model, path, "--json", "--top", 3)
        (line,) = result.stdout.splitlines()
        found = json.loads(line)
        assert found["path"] == str(path)
        assert [sorted(one) for one in found["classes"]] == [["class", "probability"]] * 3

    def test_what_can_not_be_read_does_not_stop_the_rest(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"not an image")
        (tmp_path / "b.png").write_bytes(giant_png())
        image_at(tmp_path / "c.png")
        (tmp_path / "empty").mkdir()
        result = predict(model, tmp_path, tmp_path / "gone.png", tmp_path / "empty")
        assert result.exit_code == 1
        assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(tmp_path / "c.png")]
        said = [
            f"error: {tmp_path}/a.png: UnidentifiedImageError: not an image format that Pillow knows",
            f"error: {tmp_path}/b.png: ValueError: 12000 x 12000 pixels; at most 100,000,000 are unpacked",
            f"error: {tmp_path}/gone.png: No such file or directory",
            f"error: {tmp_path}/empty: no image in this folder (.jpg, .jpeg, .png, ",
        ]
        lines = result.stderr.splitlines()
        assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines

    def test_a_class_can_not_write_to_the_terminal(self, model: Path, tmp_path: Path) -> None:
        folder = changed(model, tmp_path, label_names=[f"\x1b[2J\t{k}\n" for k in range(10)])
        result = predict(folder, image_at(tmp_path / "x.png"))
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert result.stdout.count("\n") == 1
        assert len(result.stdout.split("\t")) == 3


def giant_png() -> bytes:
    """The head of 144 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def changed(model: Path, tmp_path: Path, **entries: Any) -> Path:
    """A copy of the folder whose config.json says something else; `pretrained_cfg` is changed within."""
    folder = shutil.copytree(model, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= entries.pop("pretrained_cfg", {})
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['MARKER']}",)


class TestAFolderOfSomebodyElse:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "weights.pth"])
    def test_a_pickle_is_not_opened(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        marker = tmp_path / "exploded"
        monkeypatch.setenv("MARKER", str(marker))
        folder = changed(model, tmp_path)
        (folder / "model.safetensors").unlink()
        bomb = pickle.dumps(_Bomb())
        (folder / name).write_bytes(bomb)
        result = predict(folder, image_at(tmp_path / "x.png"))
        assert result.exit_code == 2, result.output
        assert not marker.exists()
        pickle.loads(bomb)
        assert marker.exists(), "the bomb works"

    @pytest.mark.parametrize(
        ("entries", "said"),
        [
            ({"architecture": "../../other"}, "Unknown model"),
            ({"architecture": "local-dir:/etc"}, "Unknown model"),
            ({"architecture": "hf-hub:timm/resnet18.a1_in1k"}, "Unknown model"),
            ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args: checkpoint_path may not stand there"),
            ({"model_args": {"pretrained_cfg": {"file": "x.pth"}}}, "model_args: pretrained_cfg may not stand there"),
            ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "less than or equal to 4096"),
            ({"pretrained_cfg": {"input_size": [3, 16, 32]}}, "16 x 32 pixels are no square"),
            ({"pretrained_cfg": {"mean": [float("nan")] * 3}}, "finite number"),
            ({"pretrained_cfg": {"std": [0, 1, 1]}}, "greater than 0"),
            ({"num_classes": 11}, "10 label_names for 11 classes"),
            ({"label_names": "0123456789"}, "label_names: Input should be a valid array"),
            ({"num_classes": 3, "label_names": ["a", "b", "c"]}, "cannot load this student"),
        ],
    )
    def test_a_configuration_is_checked_first(
        self, model: Path, tmp_path: Path, entries: dict[str, Any], said: str
    ) -> None:
        folder = changed(model, tmp_path, **entries)
        with pytest.raises(InputError, match=said):
            prediction.load(folder)

    def test_weights_of_another_place_are_not_read(self, model: Path, small: Small, tmp_path: Path) -> None:
        """timm would take `file`, `url` and `custom_load` of an architecture's own configuration at their word."""
        elsewhere = tmp_path / "elsewhere.safetensors"
        elsewhere.write_bytes(b"not even weights")
        folder = changed(
            model, tmp_path, pretrained_cfg={"file": str(elsewhere), "source": "", "url": "http://127.0.0.1:9/x"}
        )
        own = prediction.load(folder).student.model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in small.student.model.state_dict().items())

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
    def test_no_student_is_a_mistake(self, model: Path, tmp_path: Path, content: bytes | None) -> None:
        folder = changed(model, tmp_path)
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_bytes(content)
        result = predict(folder, image_at(tmp_path / "x.png"))
        assert result.exit_code == 2
        assert "not a student: config.json" in result.stderr
        assert len(result.stderr.splitlines()) == 1
