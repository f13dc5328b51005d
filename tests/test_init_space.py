"""`sweeper init`: a commented space file that loads, plans and rehearses, whatever the folder is called and holds."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from command_line import finish, start
from hub_mirror import hub_of
from photos import folder_of

from sweeper import choices, hub, init_space, spacefile
from sweeper import survey as surveys
from sweeper.choices import Teacher
from sweeper.cli import main
from sweeper.console import Console
from sweeper.devices import slot
from sweeper.errors import InputError
from sweeper.pairs import check_models
from sweeper.place import Place

CPU = Place(slot("cpu", is_here=True), {"CPU": 2.0, "GPU": 0.0})
GPU = Place(slot("NVIDIA A10G", is_here=True), {"CPU": 8.0, "GPU": 1.0})


def text(root: Path, where: Place, teachers: tuple[Teacher, ...], name: str = "mine") -> str:
    dataset = surveys.recognise(str(root))
    seen = surveys.survey(dataset, surveys.listed(dataset, init_space.SEED))
    chosen = choices.first(
        short_side=seen.short_side,
        num_train=seen.index.split_counts()["train"],
        class_names=seen.index.class_names,
        processor=where.slot.processor,
        teachers=teachers,
    )
    return init_space.text(seen, chosen, name, Path(f"{name}.yaml"), where, "about 9 min 30 s on 2 lanes")


def sweeper(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return finish(start(folder, *arguments, more={"HF_HUB_OFFLINE": "1"}))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("where", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_file_loads_and_its_models_exist(tmp_path: Path, where: Place, no_hub: None) -> None:
    root = folder_of(tmp_path / "photos", {"cat": 9, "dog": 9})
    teachers = init_space.teachers_for(where.slot.processor)
    (tmp_path / "mine.yaml").write_text(text(root, where, teachers))
    space = spacefile.load(tmp_path / "mine.yaml")
    check_models(space)
    dataset = space.config.dataset
    assert (dataset.kind, dataset.root, dataset.num_classes) == ("image_folder", str(root), 2)  # type: ignore[attr-defined]
    assert space.config.trial["student"]["model"]["choice"] == list(choices.STUDENTS[where.slot.processor])


def test_every_line_that_says_something_says_why(tmp_path: Path, no_hub: None) -> None:
    root = folder_of(tmp_path / "photos", {"cat": 9, "dog": 9})
    lines = text(root, CPU, init_space.teachers_for("CPU")).splitlines()
    silent = [line for line in lines if line.strip() and "#" not in line]
    assert silent == []
    assert max(len(line) for line in lines if str(root) not in line) <= 140, "fits an editor's window"


def test_the_synthetic_part_works_once_it_is_no_comment(tmp_path: Path, no_hub: None) -> None:
    root = folder_of(tmp_path / "photos", {"cat": 9, "dog": 9})
    lines = text(root, GPU, init_space.teachers_for("GPU")).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("# synthetic:"))
    used = [line[2:] if number >= begin and line.startswith("# ") else line for number, line in enumerate(lines)]
    (tmp_path / "mine.yaml").write_text("\n".join(used))
    config = spacefile.load(tmp_path / "mine.yaml").config
    assert set(config.synthetic) == {"sd"}
    assert config.trial["synthetic"]["ratio"]["choice"] == [0, 1, 2]


@pytest.mark.parametrize("name", ["a: b # c", 'say "cheese"', "Fotos von Köln", "[brackets]", "{{ name }}", "yes"])
def test_whatever_the_folder_is_called_the_file_says_that_folder(tmp_path: Path, name: str, no_hub: None) -> None:
    root = folder_of(tmp_path / name, {"cat's #1": 9, "yes": 9})
    run_name = init_space._name_of(str(root))
    (tmp_path / "x.yaml").write_text(text(root, CPU, init_space.teachers_for("CPU"), run_name))
    assert spacefile.load(tmp_path / "x.yaml").config.dataset.root == str(root)  # type: ignore[attr-defined]


def test_teachers_come_from_the_hub_where_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = init_space.HUB_TEACHERS["CPU"][0]
    weights = tmp_path / "hub" / "timm" / model / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    with hub_of(tmp_path / "hub", monkeypatch) as asked:
        assert hub.find(f"timm/{model}") == "reachable"
        assert [teacher.name for teacher in init_space.teachers_for("CPU")] == ["resnet18"]
        assert hub.find("timm/no_such_model") == "absent"
        assert asked == [], "nothing is downloaded"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.find(f"timm/{model}") == "absent"
    snapshot = tmp_path / "hub" / ".cache" / f"models--timm--{model}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub" / ".cache"))
    assert hub.find(f"timm/{model}") == "cached"


def test_a_file_that_is_there_is_kept_unless_force_is_said(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"mine.yaml: exists already; --force replaces it"):
        init_space.write(str(tmp_path), Console(stream=io.StringIO()), out=out, name=None, minutes=1, force=False)
    assert out.read_text() == "mine"


def test_the_command_writes_a_file_that_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init_space, "TIMED_S", 0.5)  # the first model is timed, the others are counted
    folder_of(tmp_path / "my photos", {"cat": 12, "dog": 12, "owl": 12})
    done = CliRunner().invoke(main, ["init", "my photos", "--minutes", "3"])
    assert done.exit_code == 0, done.output
    assert "wrote my-photos.yaml: " in done.output
    assert "no model hub answers" in done.output
    tree = yaml.safe_load((tmp_path / "my-photos.yaml").read_text())
    assert tree["dataset"]["root"] == str(tmp_path / "my photos")
    assert tree["teachers"]["digits_cnn"]["adapt"] == "fine_tune"
    planned = CliRunner().invoke(main, ["plan", "my-photos.yaml", "--no-calibrate"])
    assert planned.exit_code == 0, planned.output
    assert f"search     {tree['search']['trials']} trials" in planned.output
    assert not (tmp_path / "results").exists()
    again = CliRunner().invoke(main, ["init", "my photos"])
    assert again.exit_code == 2
    assert "exists already" in again.output


@pytest.mark.slow
def test_the_file_rehearses_and_gives_a_front(tmp_path: Path) -> None:
    folder_of(tmp_path / "photos", {"cat": 40, "dog": 40})
    for arguments in (
        ("init", "photos", "--minutes", "1"),
        ("run", "photos.yaml", "--rehearse"),
        ("run", "photos.yaml"),
    ):
        done = sweeper(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    assert next((tmp_path / "results" / "photos").glob("*/pareto.csv")).read_text().count("\n") > 1


def test_a_machine_is_worded() -> None:
    assert init_space._machine(GPU) == "1 x NVIDIA A10G and 8 cores"
    assert init_space._machine(CPU) == "2 cores without a GPU"
