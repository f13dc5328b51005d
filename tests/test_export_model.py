"""A student handed over: the folder, the ONNX graph, the card whose own lines are run, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from PIL import Image
from small_student import SIZE, Small

from sweeper import onnx_export
from sweeper import student as students
from sweeper.cli import main
from sweeper.datasets import digits
from sweeper.errors import RunFailed
from sweeper.export_model import FILES, dataset_images
from sweeper.model_card import HEAD, render
from sweeper.store import Store
from sweeper.trial import StudentConfig

torch.set_num_threads(1)
NASTY = "</td><script>alert(1)</script> | **x** `a`\n# b"


@pytest.fixture(scope="module")
def exported(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Row 1 with everything, as the command line writes it, and what that printed."""
    folder = tmp_path_factory.mktemp("exported") / "a student"
    return folder, export(small, folder)


def export(small: Small, folder: Path, *more: str, rank: int = 1) -> Result:
    return CliRunner().invoke(
        main, ["export", "small", "--model", str(rank), "--to", str(folder), *small.arguments, *more]
    )


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


class TestTheFolder:
    def test_is_whole_and_says_what_was_checked(self, exported: tuple[Path, Result], small: Small) -> None:
        folder, result = exported
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name], "nothing is left beside it"
        lines = result.stdout.splitlines()
        assert lines[:5] == [str(folder / name) for name in FILES]
        assert lines[5].startswith("row 1: test_resnet, 374k parameters, test 0.")
        checked = re.fullmatch(
            r"ONNX Runtime against torch: largest difference of a logit ([\d.e-]+) \(logits up to [\d.]+\), same class "
            r"for 60 of 60 images \(50 of the dataset and 10 of noise; batches of 1 and 5\)",
            lines[6],
        )
        assert checked
        assert float(checked[1]) < 1e-4
        assert lines[7] == f"`sweeper predict '{folder}' IMAGES...` uses it"

    def test_timm_loads_it_alone(self, exported: tuple[Path, Result], small: Small) -> None:
        model = timm.create_model(f"local-dir:{exported[0]}", pretrained=True).eval()
        images = small.test.images_BCHW[:9].float().div_(255)
        with torch.no_grad():
            assert torch.equal(model(small.student.normalise(images)), small.student(images).logits_BK)

    def test_the_graph_takes_pixels_and_any_batch(self, exported: tuple[Path, Result], small: Small) -> None:
        session = onnxruntime.InferenceSession(exported[0] / "model.onnx", providers=["CPUExecutionProvider"])
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["N", 3, SIZE, SIZE])
        assert (made.name, made.type, made.shape) == ("logits", "tensor(float)", ["N", 10])
        images = small.test.images_BCHW.float().div_(255)
        predicted = session.run(None, {"images": images.numpy()})[0].argmax(axis=1)
        assert float((predicted == small.test.labels_B.numpy()).mean()) == small.accuracy

    def test_labels_are_a_line_a_class(self, exported: tuple[Path, Result]) -> None:
        assert (exported[0] / "labels.txt").read_text().splitlines() == list(digits.CLASS_NAMES)


class TestTheCard:
    def test_has_the_head_that_hubs_read(self, exported: tuple[Path, Result]) -> None:
        text = card_of(exported[0])
        assert text.startswith(HEAD)
        data = ModelCard(text).data
        assert data.library_name == "timm"
        assert data.pipeline_tag == "image-classification"
        assert {"timm", "onnx", "knowledge-distillation", "sweeper"} <= set(data.tags)
        assert data.license is None, "that is the user's to choose"

    def test_tells_what_the_run_recorded(self, exported: tuple[Path, Result], small: Small) -> None:
        text = card_of(exported[0])
        said = [
            "row 1 (trial 3) of the sweep `small/a1b2c3d4e5`",
            f"| test, mean of 3 seeds ± standard deviation | {small.accuracy:.3f}±0.004 |",
            f"| test, these weights (of the seed that is best on validation) | {small.accuracy:.3f} |",
            "- dataset: digits, train_per_class 10, image_size 16",
            "- images: 100 train, 200 val, 447 test",
            "- synthetic images: 1x the real training images, from tiny (diffusers, model tiny, steps 5)",
            "- `cnn`: timm, weights zoo:cnn",
            "- loss: `ce+kl+align_uniform`",
            "| part | CPU-s |",
            "| adaptation of the teacher | 1.300 |",
            "| whole cost from nothing | 9.000 |",
            "same class for 60 of 60 images",
        ]
        assert [line for line in said if line not in text] == []
        assert "somebody" not in text, "a card is shown to others: no path of this machine"
        assert "private.png" not in text, "and no file of the data"
        assert "`vit`" not in text, "a teacher that the student never heard"
        settings = re.search(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert settings
        assert yaml.safe_load(settings[1])["loss"]["kl"]["weight"] == 1.0

    def test_its_own_lines_give_the_classes_of_the_student(self, exported: tuple[Path, Result], small: Small) -> None:
        folder = exported[0]
        snippets = re.findall(r"^```python\n(.*?)^```$", card_of(folder), re.DOTALL | re.MULTILINE)
        assert len(snippets) == 2
        upright = Image.fromarray(small.test.images_BCHW[0].numpy().transpose(1, 2, 0))
        exif = Image.Exif()
        exif[0x0112] = 6  # as a camera that was held upright writes it: turn to the right to see it
        upright.rotate(90).save(folder / "image.png", exif=exif)
        try:
            for snippet in snippets:
                done = subprocess.run([sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                with torch.no_grad():
                    logits = small.student(small.test.images_BCHW[:1].float() / 255).logits_BK
                assert done.stdout == f"{digits.CLASS_NAMES[int(logits.argmax())]}\n"
        finally:
            (folder / "image.png").unlink()

    def test_names_from_the_data_stay_names(self, small: Small, tmp_path: Path) -> None:
        (row, *_) = small.run.read_pareto()
        config = json.loads((small.run.path / "models/3/config.json").read_text())
        nasty = {**row, "student": NASTY, "teacher": NASTY, "loss": NASTY, "device": f"cpu {NASTY}"}
        command = f"sweeper export '```\n# x' {NASTY}"
        text = render(small.run, nasty, {**config, "label_names": [NASTY, *config["label_names"][1:]]}, None, command)
        outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)  # code spans and code blocks
        assert "<script" not in outside
        assert "**x**" not in outside
        assert not re.search(r"^# b", outside, re.MULTILINE)
        assert ModelCard(text).data.library_name == "timm"
        assert "model.onnx" not in text, "what is not there is not spoken of"

    def test_secrets_stay_out(self, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
        (row, *_) = small.run.read_pareto()
        config = json.loads((small.run.path / "models/3/config.json").read_text())
        assert "hf_abcdefghijkl" not in render(small.run, row, config, None, "sweeper hf_abcdefghijkl")


class TestWhereItGoes:
    def test_an_earlier_export_is_replaced_as_a_whole(self, small: Small, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        assert export(small, folder, "--no-onnx").exit_code == 0
        (folder / "model.onnx").write_bytes(b"of an earlier one")
        again = export(small, folder, "--no-onnx")
        assert again.exit_code == 0, again.output
        assert sorted(path.name for path in folder.iterdir()) == sorted(set(FILES) - {"model.onnx"})
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    @pytest.mark.parametrize("held", [["notes.txt"], ["config.json"], ["README.md", ".git"]])
    def test_a_folder_of_others_is_left_alone(self, small: Small, tmp_path: Path, held: Sequence[str]) -> None:
        for name in held:
            (tmp_path / name).write_text("mine")
        refused = export(small, tmp_path, "--no-onnx")
        assert refused.exit_code == 2
        assert "is not empty and no earlier export" in refused.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(held)
        assert export(small, tmp_path, "--no-onnx", "--force").exit_code == 0
        kept = [name for name in held if name not in FILES]
        assert {path.name for path in tmp_path.iterdir()} == {*FILES, *kept} - {"model.onnx"}
        assert all((tmp_path / name).read_text() == "mine" for name in kept)

    def test_a_file_in_its_place_is_refused(self, small: Small, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
        for name, why in (("file", "is a file"), ("nowhere", "is a link to nowhere")):
            refused = export(small, tmp_path / name, "--force")
            assert (refused.exit_code, why in refused.stderr) == (2, True)

    def test_what_can_not_be_written_leaves_nothing(self, small: Small, tmp_path: Path) -> None:
        """The student of another run lies in the way: its weights do not fit what config.json says."""
        broken = tmp_path / "results/small/a1b2c3d4e5"
        broken.parent.mkdir(parents=True)
        subprocess.run(["cp", "-r", str(small.run.path), str(broken)], check=True)
        config = json.loads((broken / "models/3/config.json").read_text())
        (broken / "models/3/config.json").write_text(json.dumps({**config, "architecture": "test_vit"}))
        target = tmp_path / "to"
        refused = CliRunner().invoke(
            main, ["export", "small", "--model", "1", "--to", str(target), "--results", str(tmp_path / "results")]
        )
        assert refused.exit_code == 2, refused.output
        assert "timm cannot load this student" in refused.stderr
        assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "7", "--to", "x"], "--model: 7 is not a row of small/a1b2c3d4e5; allowed: 1 to 2"),
        (["--model", "2", "--to", "x"], "the student of row 2 of small/a1b2c3d4e5 is not there"),
        (["--model", "1"], "--model: needs --to DIR"),
        (["--to", "x"], "--to: belongs to a student; name its row with --model N"),
        (["--force"], "--force: belongs to a student"),
        (["--model", "1", "--to", "x", "--format", "csv"], "--format: belongs to the table"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["export", "small", *arguments, *small.arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_tables_are_exported_as_before(small: Small, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["export", "small", "--format", "csv,md", "--out", str(tmp_path), *small.arguments]
    )
    assert result.stdout.splitlines() == [str(tmp_path / "pareto.csv"), str(tmp_path / "pareto.md")]


class TestTheGraph:
    @pytest.mark.parametrize(
        "architecture",
        [
            "test_vit",
            pytest.param("test_efficientnet", marks=pytest.mark.slow),
            pytest.param("mobilenetv2_050", marks=pytest.mark.slow),
            pytest.param("resnet10t", marks=pytest.mark.slow),
            pytest.param("resnet18", marks=pytest.mark.slow),
            pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
            pytest.param("convnext_atto", marks=pytest.mark.slow),
            pytest.param("mobilevit_xxs", marks=pytest.mark.slow),
        ],
    )
    def test_is_the_student_for_each_architecture(self, architecture: str) -> None:
        student = students.build(StudentConfig(model=architecture), 4, 32, seed=0).eval()
        found = onnx_export.check(onnx_export.to_onnx(student), student)
        assert found.num_agreeing == found.num_images == 10
        assert found.max_difference <= 1e-4 * max(1.0, found.max_logit)

    def test_of_another_student_is_refused(self, exported: tuple[Path, Result]) -> None:
        other = students.build(StudentConfig(model="test_resnet"), 10, SIZE, seed=1).eval()
        with pytest.raises(RunFailed, match="the ONNX graph is not the student: largest difference"):
            onnx_export.check((exported[0] / "model.onnx").read_bytes(), other)

    def test_that_torch_can_not_write_is_the_users_to_leave_out(self) -> None:
        student = students.build(StudentConfig(model="test_resnet"), 10, SIZE, seed=1).eval()
        student.model.global_pool = _Unwritable()
        with pytest.raises(RunFailed, match="torch cannot write 'test_resnet' as ONNX"):
            onnx_export.to_onnx(student)

    def test_is_tried_on_noise_where_the_store_is_empty(self, small: Small, tmp_path: Path) -> None:
        assert dataset_images(Store(str(tmp_path / "empty")), digits.CLASS_NAMES, SIZE) == []
        assert not (tmp_path / "empty").exists()
        real = dataset_images(small.store, digits.CLASS_NAMES, SIZE)
        assert len(real) == 50
        assert np.isclose(float(torch.stack(real).max()), 1.0)


class _Unwritable(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))
