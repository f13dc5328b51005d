"""What SECURITY.md promises: data is data, in every place that sweeper reads and in all that it writes and shows."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm as timm_library
import torch
import yaml
from click.testing import CliRunner
from command_line import environment
from run_samples import final_row, trial_row, write_run
from safetensors.torch import save, save_file
from samples import MemorySlot, always, space_of, sweep_config, trial_config, trial_data
from timm.models._hub import save_config_for_hf

from sweeper import cli, findings, registry, student, weights
from sweeper.archive import export, list_runs
from sweeper.checkpoints import packed, state_of
from sweeper.config import SearchConfig
from sweeper.console import Console
from sweeper.errors import InputError, SweeperError
from sweeper.fingerprint import canonical_json, fingerprint
from sweeper.generators import diffusers
from sweeper.layout import runs_table
from sweeper.record import decode, stays_below
from sweeper.redact import redacted
from sweeper.report import html
from sweeper.results import RunFolder
from sweeper.retrainings import Outcomes
from sweeper.status import LaneStatus
from sweeper.store import Store
from sweeper.study import Study
from sweeper.teachers import timm
from sweeper.train import fit
from sweeper.trial import StudentConfig

REPOSITORY = Path(__file__).parents[1]
TEN = tuple("0123456789")
CPU = torch.device("cpu")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Where no bomb of a test may ever make a folder."""
    path = tmp_path / "boom"
    yield path
    assert not path.exists(), "a pickle was loaded"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny" / "a1").path


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> RunFolder:
    """A finished run of the test's own."""
    return RunFolder(shutil.copytree(finished_run, tmp_path / "tiny" / "a1"))


@pytest.fixture
def bomb(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


@pytest.fixture
def torch_bomb(marker: Path) -> bytes:
    """As `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(2)}, "more": Bomb(marker)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def table_bomb(marker: Path) -> bytes:
    """A table with all columns of a trial; those of text are Ray Data's pickled objects."""
    import ray.data  # noqa: F401  registers the type, as every `sweeper run` does
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    kind = ArrowPythonObjectType()
    storage = pa.array([pickle.dumps(Bomb(marker))], kind.storage_type)
    columns = {name: pa.ExtensionArray.from_storage(kind, storage) for name in ("config", "image", "label", "error")}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


class TestNoPickleIsLoaded:
    def test_a_bomb_works(self, tmp_path: Path) -> None:
        """Without it the others would prove nothing."""
        pickle.loads(pickle.dumps(Bomb(tmp_path / "plain")))
        torch.save(Bomb(tmp_path / "torch"), tmp_path / "file")
        torch.load(tmp_path / "file", weights_only=False)
        assert (tmp_path / "plain").exists()
        assert (tmp_path / "torch").exists()

    def test_a_table_with_a_bomb_works(self, table_bomb: bytes, marker: Path) -> None:
        pq.read_table(io.BytesIO(table_bomb))["config"].to_pylist()
        marker.rmdir()

    def test_a_checkpoint_that_is_not_ours_counts_as_absent(self, bomb: bytes, torch_bomb: bytes) -> None:
        config, data = trial_config(epochs=1, epoch_size=6), trial_data()

        def trained(state: bytes | None) -> Any:
            outcome = fit(config, data, seed=1, device=CPU, report=always, slot=MemorySlot(state))
            return replace(outcome, train_seconds=0, curve=[])

        anew = trained(None)
        for state in (bomb, torch_bomb, b"", b"\0" * 100, save({"a": torch.ones(3)})):
            assert trained(state) == anew

    def test_a_checkpoint_that_was_damaged_counts_as_absent(self) -> None:
        state = packed({"objective": {"weight": torch.rand(9)}}, {"epoch": 3, "loss": math.nan})
        whole = state_of(state, CPU)
        assert whole is not None
        assert whole["epoch"] == 3
        for place in range(0, len(state), 7):
            assert state_of(state[:place], CPU) is None
            assert state_of(state[:place] + bytes([state[place] ^ 1]) + state[place + 1 :], CPU) is None

    def test_a_checkpoint_gives_back_every_bit(self) -> None:
        values = {"nan": torch.tensor(math.nan), "none": torch.empty(0), "half": torch.rand(3).bfloat16()}
        strided = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
        groups = {"a": {**values, "strided": strided, "the same": strided}, "b": {"x.y/z": torch.arange(3)}}
        found = state_of(packed(groups, {"float": 0.1, "curve": [(1, math.inf)]}), CPU)
        assert found is not None
        assert (found["float"], found["curve"]) == (0.1, [[1, math.inf]])
        for group, tensors in groups.items():
            assert found[group].keys() == tensors.keys()
            for name, value in tensors.items():
                assert found[group][name].dtype == value.dtype
                assert torch.equal(found[group][name].nan_to_num(7), value.nan_to_num(7))

    def test_a_store(self, store: Store, bomb: bytes, tmp_path: Path) -> None:
        prefix = store.staging()
        store.write_bytes(prefix, "rows.parquet", b"PAR1" + bytes(len(bomb) - 4))
        record = store.commit("key", "images", {}, prefix)
        (Path(store.uri) / prefix / "rows.parquet").write_bytes(bomb)
        assert "rows.parquet has sha256" in str(store.verify(deep=True)[0])
        with pytest.raises(SweeperError, match=r"rows\.parquet"):
            store.read_table(record)
        (Path(store.uri) / "records" / "other.json").write_bytes(bomb)
        assert store.get("other") is None
        assert "is torn or was changed" in str(store.verify())

    @pytest.mark.parametrize("name", ["trials.parquet", "pareto.parquet", "space.yaml", "environment.json"])
    def test_a_results_folder(self, name: str, bomb: bytes, run: RunFolder) -> None:
        (run.path / name).write_bytes(bomb)
        with pytest.raises(InputError, match=f"{name}: is damaged, or can not be read"):
            run.contents()

    def test_a_table_of_pickled_objects(self, table_bomb: bytes, run: RunFolder) -> None:
        (run.path / "trials.parquet").write_bytes(table_bomb)
        with pytest.raises(InputError, match=r"trials\.parquet: is damaged.*column 'config' has a type of its own"):
            run.read_trials()

    def test_objects_in_a_space_file(self, marker: Path, run: RunFolder) -> None:
        (run.path / "space.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{marker}']\n")
        with pytest.raises(InputError, match=r"space\.yaml: is damaged"):
            run.read_space()
        done = CliRunner().invoke(cli.main, ["plan", str(run.path / "space.yaml")])
        assert done.exit_code == 2

    def test_a_damaged_run_does_not_hide_the_others(self, bomb: bytes, run: RunFolder, tmp_path: Path) -> None:
        shutil.copytree(run.path, tmp_path / "tiny" / "b2")
        (run.path / "trials.parquet").write_bytes(bomb)
        states = {found.run_id: found.summary()["state"] for found in list_runs(tmp_path)}
        assert states == {"a1": "damaged", "b2": "finished"}

    def test_what_an_interrupted_run_left(self, bomb: bytes, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        journal.write_bytes(bomb + b"\n")
        space = space_of(sweep_config())
        with suppress(SweeperError):
            Study(journal, SearchConfig(trials=1), space, 0)
        for name in ("a.json", "b/model.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(bomb)
        with suppress(SweeperError):
            assert Outcomes(tmp_path).get("a") is None

    def test_a_dataset(self, table_bomb: bytes, tmp_path: Path) -> None:
        (tmp_path / "train.parquet").write_bytes(table_bomb)
        config = registry.config_class("datasets", "parquet").model_validate({"path": str(tmp_path)})
        with pytest.raises(InputError, match=r"train\.parquet"):
            registry.load("datasets", "parquet").index(config, 0)


def timm_folder(folder: Path) -> Path:
    """A folder in timm's format, as yet without weights."""
    folder.mkdir()
    save_config_for_hf(timm_library.create_model("test_resnet", num_classes=10), str(folder / "config.json"))
    return folder


class TestNoModelIsAPickle:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "checkpoint.pth.tar"])
    def test_a_teachers_folder(self, name: str, torch_bomb: bytes, tmp_path: Path) -> None:
        folder = timm_folder(tmp_path / "teacher")
        (folder / name).write_bytes(torch_bomb)
        with pytest.raises(InputError, match=r"has no safetensors; save the weights as safetensors, or say `trust"):
            timm.identity(timm.Config(weights=str(folder)))
        (folder / "readme.safetensors").write_bytes(b"")
        with pytest.raises(InputError, match=r"weights"):  # which of the two timm takes is its own affair
            timm.build(timm.Config(weights=str(folder)), TEN)

    def test_a_teacher_that_is_trusted_is_read_as_tensors_alone(
        self, torch_bomb: bytes, marker: Path, tmp_path: Path
    ) -> None:
        folder = timm_folder(tmp_path / "teacher")
        for path in (folder / "pytorch_model.bin", tmp_path / "weights.pt"):
            path.write_bytes(torch_bomb)
        for trusted in (str(folder), str(tmp_path / "weights.pt")):
            with pytest.raises(InputError, match="weights"):
                timm.build(timm.Config(model="test_resnet", weights=trusted, trust=True), TEN)
        wanted = timm_library.create_model("test_resnet", num_classes=10)
        torch.save(wanted.state_dict(), folder / "pytorch_model.bin")
        torch.save(wanted.state_dict(), tmp_path / "weights.pt")
        for trusted in (str(folder), str(tmp_path / "weights.pt")):
            config = timm.Config(model="test_resnet", weights=trusted, trust=True)
            found = timm.build(config, TEN).model.state_dict()
            assert all(torch.equal(value, found[name]) for name, value in wanted.state_dict().items())
            assert "trust" not in timm.identity(config)

    def test_a_file_of_weights(self, torch_bomb: bytes, tmp_path: Path) -> None:
        for name in ("weights.pt", "weights.pth", "weights.bin", "weights.safetensors"):
            (tmp_path / name).write_bytes(torch_bomb)
            with pytest.raises(InputError, match=f"weights: .*{name}"):
                timm.build(timm.Config(model="test_resnet", weights=str(tmp_path / name)), TEN)

    def test_a_config_that_is_not_json(self, bomb: bytes, tmp_path: Path) -> None:
        folder = timm_folder(tmp_path / "teacher")
        save_file({"a": torch.ones(1)}, folder / "model.safetensors")
        (folder / "config.json").write_bytes(bomb)
        with pytest.raises(InputError, match=r"config\.json is not timm's"):
            timm.build(timm.Config(weights=str(folder)), TEN)

    def test_arguments_can_not_name_a_checkpoint(self, torch_bomb: bytes, tmp_path: Path) -> None:
        (tmp_path / "weights.pt").write_bytes(torch_bomb)
        config = timm.Config(
            model="test_resnet", weights="none", model_args={"checkpoint_path": str(tmp_path / "weights.pt")}
        )
        with pytest.raises(InputError, match="the weights are a pickle"):
            timm.build(config, TEN)

    def test_the_hub_without_safetensors(
        self, torch_bomb: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub.errors import EntryNotFoundError

        (tmp_path / "pytorch_model.bin").write_bytes(torch_bomb)

        def download(*_: Any, filename: str, **__: Any) -> str:
            if filename.endswith(".safetensors"):
                raise EntryNotFoundError("there is none")
            return str(tmp_path / "pytorch_model.bin")

        monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
        with pytest.raises(InputError, match=r"'test_resnet': the weights are a pickle, .*trust: true"):
            timm.build(timm.Config(model="test_resnet"), TEN)
        with pytest.raises(InputError, match="the weights are a pickle"):
            student.build(StudentConfig(model="test_resnet", init="pretrained"), 10, 32, 0)

    def test_a_students_folder(self, torch_bomb: bytes, tmp_path: Path) -> None:
        folder = timm_folder(tmp_path / "student")
        (folder / "pytorch_model.bin").write_bytes(torch_bomb)
        with pytest.raises(InputError, match="the weights are a pickle, which could run code; save the weights as"):
            student.load(folder)
        with pytest.raises(InputError, match=r"has no model\.safetensors"):
            student.build(StudentConfig(model=str(folder), init="pretrained"), 10, 32, 0)
        (folder / "model.safetensors").write_bytes(torch_bomb)
        with pytest.raises(InputError, match="timm cannot load this student"):
            student.load(folder)

    def test_what_refuses_pickles_leaves_torch_as_it_was(self) -> None:
        before = torch.load
        with pytest.raises(InputError), weights.safetensors_only("a"), weights.safetensors_only("b"):
            torch.load("anything")
        assert torch.load is before


@pytest.fixture
def pipeline(generator_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generator_folder, tmp_path / "pipeline"))


class TestNoPipelineRunsCode:
    def test_the_pipeline_can_be_loaded_as_it_is(self, pipeline: Path) -> None:
        diffusers.build(diffusers.Config(model=str(pipeline)), "cpu")

    def test_weights_that_are_a_pickle(self, pipeline: Path, torch_bomb: bytes) -> None:
        (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        (pipeline / "unet" / "diffusion_pytorch_model.bin").write_bytes(torch_bomb)
        with pytest.raises(
            InputError, match=r"can not be loaded by diffusers: .*; save the weights as safetensors, or"
        ):
            diffusers.build(diffusers.Config(model=str(pipeline)), "cpu")

    def test_weights_that_are_a_pickle_are_read_where_they_are_trusted(self, pipeline: Path) -> None:
        from safetensors.torch import load_file

        path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
        config = diffusers.Config(model=str(pipeline), trust=True)
        diffusers.build(config, "cpu")
        assert "trust" not in diffusers.identity(config)

    @pytest.mark.parametrize("place", ["the pipeline", "a part"])
    def test_code_that_a_pipeline_brings(self, place: str, pipeline: Path, marker: Path) -> None:
        index = json.loads((pipeline / "model_index.json").read_text())
        folder = pipeline if place == "the pipeline" else pipeline / "unet"
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Evil:\n    pass\n")
        index |= {"_class_name": ["evil", "Evil"]} if place == "the pipeline" else {"unet": ["evil", "Evil"]}
        (pipeline / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"brings code of its own \(.*evil\.py\); say `trust: true`"):
            diffusers.build(diffusers.Config(model=str(pipeline)), "cpu")


OUTSIDE = ["../up", "/etc/passwd", "a/../../up", "a\\..\\up", "a\0b", "", ".", "a//b", "a/./b"]


class TestPathsStayBelowTheirRoot:
    @pytest.mark.parametrize("name", OUTSIDE)
    @pytest.mark.parametrize("field", ["prefix", "name", "sha256"])
    def test_of_a_record(self, field: str, name: str, store: Store) -> None:
        prefix = store.staging()
        store.write_bytes(prefix, "a/rows.bin", b"1")
        store.commit("key", "images", {}, prefix)
        path = Path(store.uri) / "records" / "key.json"
        body = json.loads(path.read_bytes())
        del body["checksum"]
        (body if field == "prefix" else body["files"][0])[field] = name
        made_up = canonical_json({**body, "checksum": fingerprint(body)})
        with pytest.raises(ValueError, match="names a file outside the store"):
            decode(made_up, "key")
        path.write_bytes(made_up)
        assert store.get("key") is None
        assert "names a file outside the store" in str(store.verify())

    def test_of_a_record_that_is_something_else(self) -> None:
        for body in ({"key": "k"}, {"key": "k", "files": 3}, {"files": [], "key": "k", "charge": [1]}):
            with pytest.raises(ValueError, match="is not a record of this version"):
                decode(canonical_json({**body, "checksum": fingerprint(body)}), "k")

    @pytest.mark.parametrize("name", [*OUTSIDE, "a/b"])
    def test_of_a_student(self, name: str, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "tiny" / "a1")
        with pytest.raises(ValueError, match="is not the name of a file"):
            run.write_model(name, {"config.json": b"{}"})
        with pytest.raises(ValueError, match="is not the name of a file"):
            run.write_model("3", {name: b"{}"})
        assert not list(tmp_path.rglob("*.json"))

    def test_an_export_writes_over_a_link_and_not_through_it(self, run: RunFolder, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("mine")
        out = tmp_path / "out"
        out.mkdir()
        (out / "pareto.csv").symlink_to(tmp_path / "precious")
        export(run, ["csv"], out)
        assert (tmp_path / "precious").read_text() == "mine"

    def test_names_that_are_fine(self) -> None:
        assert all(map(stays_below, ["a", "a/b.parquet", "..a", "a..", "data/018f-7", "ä b/c"]))


NAMES = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script><!-- \u2028",
    "[bold]x[/]",
    "\x1b[31mred\x9b31m\x07",
    r"\input{/etc/passwd} $x^2$ [1cm]",
    "=cmd|' /C calc'!A0",
]


def run_of_names(path: Path) -> RunFolder:
    """A run in which everything that can have a name has each of these once."""
    run = RunFolder(path)
    named: list[dict[str, Any]] = [{"teacher": name, "student": name, "loss": name} for name in NAMES]
    trials = [trial_row(number, **names) for number, names in enumerate(named)]
    lost: dict[str, Any] = {"state": "failed", "accuracy_val": float("nan")}
    run.write_trials([*trials, *(trial_row(10 + n, **lost, error=name) for n, name in enumerate(NAMES))])
    rows = [final_row(rank, **names) for rank, names in enumerate(named, start=1)]
    run.write_pareto(rows)
    run.write_ablation([replace(row, role="distilled") for row in rows])
    run.write_space({"name": "n", "teachers": {name: {"kind": name} for name in NAMES}})
    facts = {"classes": NAMES, **{name: name for name in NAMES}}
    run.write_environment(device="cpu", facts=facts)
    shares = [{"objective": "accuracy", "parameter": name, "importance": 0.1, "trials": 9} for name in NAMES]
    run.write_importance(shares)
    return run


def parts_of_page(page: str) -> tuple[str, str, str]:
    """What a reader sees, the data for the page's scripts, and those scripts."""
    seen, _, rest = page.partition('<script type="application/json" id="page-data">')
    data, _, code = rest.partition("</script>")
    return seen, data, code


class TestNamesAreText:
    def test_in_the_page(self, tmp_path: Path) -> None:
        pages = [
            html(run.contents()).decode() for run in (run_of_names(tmp_path / "n" / "r"), write_run(tmp_path / "m"))
        ]
        (page, data, code), (_, _, other_code) = map(parts_of_page, pages)
        assert code == other_code, "no name is in what runs"
        assert not set("<>&") & set(data)
        assert "<script" not in page.lower()
        assert "<!--" not in page
        assert page.count("<img ") == 1
        assert all(char.isprintable() or char == "\n" for char in page + data)
        assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 8

    def test_in_tables_for_papers_and_sheets(self, tmp_path: Path) -> None:
        run = run_of_names(tmp_path / "n" / "r")
        tex, markdown = ((run.path / f"pareto.{suffix}").read_text() for suffix in ("tex", "md"))
        assert "\\input" not in tex
        assert not {"$", "^", "["} & set(tex.replace("\\$", "").replace("\\textasciicircum{}", "").replace("{[}", ""))
        assert "<" not in markdown
        assert "\\[bold\\]x\\[/\\]" in markdown
        with (run.path / "pareto.csv").open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
        assert "'=cmd|' /C calc'!A0" in cells
        for text in (tex, markdown, *cells):
            assert all(char.isprintable() or char == "\n" for char in text)
        assert [row["teacher"] for row in run.read_pareto()] == NAMES, "Parquet has them as they are"

    def test_on_the_terminal(self, tmp_path: Path) -> None:
        run, out = run_of_names(tmp_path / "n" / "r"), io.StringIO()
        console = Console(stream=out, errors=out)
        console.table(run.read_pareto())
        console.ablation(run.read_ablation())
        for name in NAMES:
            console.header([name, name])
            console.error(name)
            console.show(runs_table([{**run.summary(), "name": name, "run_id": name}]))
            with console.stage(name):
                pass
            with console.search() as search:
                console.monitor.lane(LaneStatus(lane=0, job=name, label=name, epoch=1, epochs=2))
                console.draw(console.monitor.status())
                search.finished(1, "failed", name, None, 0.1, error=name)
        for line in findings.importance_lines(run.read_importance(), most=9):
            console.message(line)
        text = out.getvalue()
        assert all(char.isprintable() or char == "\n" for char in text)
        assert text.count("[bold]x[/]") >= 8, "shown, and not read as markup"


SECRETS = {
    "HF_TOKEN": "hf_MARKEDtoken0001",
    "AWS_ACCESS_KEY_ID": "AKIAMARKED0002",
    "AWS_SECRET_ACCESS_KEY": "MARKED/secret+0003",
    "AWS_SESSION_TOKEN": "MARKEDsession0004==",
    "RAY_AUTH_TOKEN": "MARKEDray0005",
}
URIS = [
    "s3://AKIA:MARKEDsecret@bucket/path",
    "s3://AKIA:MARKED/with/slashes@bucket/path",
    "s3://bucket/path?access_key=MARKEDa&secret_key=MARKEDb&region=eu",
    "s3://bucket/path?region=eu&session_token=MARKED",
    "https://user:MARKED@host:9000/path?X-Amz-Signature=MARKED",
]


class TestSecretsStayOut:
    @pytest.mark.parametrize("uri", URIS)
    def test_of_a_uri(self, uri: str) -> None:
        found = redacted(f"cannot reach '{uri}': refused")
        assert "MARKED" not in found
        assert found.startswith("cannot reach '")
        assert found.endswith("': refused")
        assert "path" in found

    def test_what_is_no_secret_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_TOKEN", "1")
        for text in (
            "s3://bucket/path@v1",
            "--set a.b=c",
            "key=value",
            "/home/me@work/x",
            "1 of 10",
            "s3://b?region=a",
        ):
            assert redacted(text) == text

    def test_of_all_that_a_run_writes_and_says(
        self, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        said = " and ".join(["it failed:", *URIS, *SECRETS.values()])
        monkeypatch.setattr(sys, "argv", ["sweeper", "run", "x.yaml", *(f"--store={uri}" for uri in URIS)])
        run.write_trials([trial_row(1, state="failed", error=said, accuracy_val=float("nan")), trial_row(2)])
        run.write_environment(device="cpu", facts={"dataset": said})
        run.write_report()
        export(run, out=tmp_path / "out")
        console = Console()
        console.message(said)
        console.error(said)
        with console.run(run.path), console.search() as search:
            console.message(said)
            search.finished(1, "failed", "a", None, 0.1, error=said)
            console.draw(console.monitor.status())
        shown = capsys.readouterr()
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        for text in (shown.out, shown.err, written.decode("latin-1"), str(run.read_trials())):
            assert "MARKED" not in text
        assert "x.yaml" in run.read_environment()["command"]
        assert "it failed" in str(run.read_trials())

    def test_of_what_ray_writes_down_of_tunes_trials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tune hands AWS keys to its trials in a runtime environment, which Ray's agent logs for all to read."""
        from ray.tune.execution.class_cache import _ActorClassCache

        from sweeper import search

        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)

        def handed_on() -> str:
            return str(_ActorClassCache().get(search.LaneTrial)._default_options["runtime_env"])

        assert "MARKED" in handed_on(), "as long as Tune does so"
        with search._quiet_tune():
            assert "MARKED" not in handed_on()
        assert "MARKED" in handed_on(), "it is Tune's own affair afterwards"

    def test_of_an_error_about_the_store(self) -> None:
        done = CliRunner().invoke(cli.main, ["store", "ls", "--store", "nosuch://AKIA:MARKEDsecret@bucket/path"])
        assert done.exit_code == 2
        assert "bucket/path" in done.output
        assert "MARKED" not in done.output


RAY = """
import os, ray, sys
from pathlib import Path
from sweeper.session import session
with session(None, Path("ray.log")):
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    print(is_token_auth_enabled(), ray._private.worker.global_worker.node.webui_url or None)
"""


class TestRay:
    def test_a_local_session_asks_for_a_token_that_is_private_and_has_no_dashboard(self, tmp_path: Path) -> None:
        kept = {name: value for name, value in environment().items() if not name.startswith("RAY_AUTH")}
        done = subprocess.run(
            [sys.executable, "-c", RAY],
            env={**kept, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["True", "None"], done.stderr
        token = tmp_path / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o077 == 0
        assert len(token.read_text()) >= 32

    def test_a_home_that_can_not_be_written_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from sweeper.session import keep_token_private

        (tmp_path / ".ray").write_text("in the way")
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        keep_token_private()
        first = os.environ["RAY_AUTH_TOKEN"]
        assert len(first) == 64
        keep_token_private()
        assert os.environ["RAY_AUTH_TOKEN"] == first

    def test_cluster_files_keep_the_token_and_the_dashboard_at_home(self) -> None:
        launchers = [p for p in (REPOSITORY / "cluster").glob("*.yaml") if "head_start_ray_commands:" in p.read_text()]
        assert len(launchers) == 3, "KubeRay starts its own, with `authOptions`"
        for path in launchers:
            text = path.read_text()
            commands = yaml.safe_load(text)
            starts = [
                c for key in ("head", "worker") for c in commands[f"{key}_start_ray_commands"] if "ray start" in c
            ]
            assert len(starts) == 2
            assert all("export RAY_AUTH_MODE=token" in command for command in starts)
            assert "--dashboard-host=127.0.0.1" in starts[0]
            assert "0.0.0.0" not in text
