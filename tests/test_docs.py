"""The documentation: it builds without a warning or a network, leaves out no key, and what it says to type works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from command_line import environment
from run_samples import write_run

from sweeper import registry, spacefile
from sweeper.cli import main

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_mkdocs = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "latex2mathml")),
    reason='the site needs pip install -e ".[docs]"',
)

# Commands that are parsed with their options and files but not run here, and why.
PARSED = {
    "run": "takes minutes; .ci/run and tests/test_run.py run it, for the smallest space and rehearsed for every space",
    "init": "times models; tests/test_init_space.py runs it",
    "submit": "needs a cluster; tests/test_submission.py and tests/cluster run it",
    "attach": "needs a cluster; tests/test_submitted.py runs it",
    "down": "needs a cluster; tests/cluster runs it",
    "export": "needs a trained student; tests/test_export_model.py runs it",
    "predict": "needs a trained student; tests/test_predict.py runs it",
    "top": "watches until it is left; tests/test_top.py runs it",
}
CHEAPER = {"plan": ["--no-calibrate"]}  # without the seconds in which it times models
PARSED_FILES = {
    "mine.yaml": "the reader's own, about images that are not here; the page's file is loaded below",
    "photos.yaml": "what `sweeper init` makes; tests/test_init_space.py plans and runs one",
    "search_spaces/paper/": "its data is a download; .ci/run rehearses it",
}


def code(language: str) -> Iterator[tuple[Path, str, str]]:
    """Every block of a language with its page and title."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if found[1] == language:
                yield page, found[2], found[3]


def commands() -> list[tuple[str, list[str]]]:
    """Each command of each `sh` block, with the page's name."""
    return [
        (page.name, words)
        for page, _, text in code("sh")
        for line in text.splitlines()
        for part in line.split("&&")
        if (words := shlex.split(part, comments=True))
    ]


def hooks() -> ModuleType:
    """`docs/hooks.py`, which is no part of the package."""
    spec = spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def left_by_a_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a checkout holds and a run leaves: the search spaces, a finished run called smoke, an empty store."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("search_spaces", "cluster"):
        (folder / name).symlink_to(REPOSITORY / name)
    write_run(folder / "results" / "smoke" / "0123456789", name="smoke")
    return folder


@pytest.fixture
def a_readers_folder(left_by_a_reader: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(left_by_a_reader)
    monkeypatch.delenv("SWEEPER_STORE", raising=False)
    return left_by_a_reader


def parsed(arguments: list[str]) -> click.Context:
    """The command that the arguments name, its options checked, not run."""
    group: click.Command = main
    context = click.Context(main, info_name="sweeper")
    while isinstance(group, click.Group):
        name, *arguments = arguments
        found = group.get_command(context, name)
        assert found is not None, f"sweeper has no verb {name!r}"
        group, context = found, click.Context(found, parent=context, info_name=name)
    return group.make_context(str(context.info_name), list(arguments), parent=context.parent)


SWEEPER = [(page, words[1:]) for page, words in commands() if words[0] == "sweeper"]


@pytest.mark.parametrize(("page", "arguments"), SWEEPER, ids=[f"{page}: {' '.join(a)}" for page, a in SWEEPER])
def test_every_command_of_the_pages_is_one(page: str, arguments: list[str], a_readers_folder: Path) -> None:
    parsed(arguments)
    files = [word for word in arguments if word.endswith(".yaml")]
    for word in files:
        assert word in PARSED_FILES or (a_readers_folder / word).is_file(), f"{page} names {word}, which is not there"
    if arguments[0] in PARSED or any(word.startswith(tuple(PARSED_FILES)) for word in files):
        return
    done = CliRunner().invoke(main, [*arguments, *CHEAPER.get(arguments[0], [])])
    assert done.exit_code == 0, done.output


def test_other_commands_are_of_files_that_exist() -> None:
    known = {"pip", "pytest", "python", "mkdocs", "ruff", "mypy", "ray", "sweeper"}
    for page, words in commands():
        assert words[0] in known, f"{page}: {' '.join(words)}"
        for word in words[1:]:
            if word.endswith(".py"):
                assert (REPOSITORY / word).is_file(), f"{page} names {word}"


def test_the_check_of_commands_can_fail(a_readers_folder: Path) -> None:
    with pytest.raises(click.NoSuchOption):
        parsed(["run", "x.yaml", "--rehearsal"])
    with pytest.raises(AssertionError, match="no verb"):
        parsed(["begin"])
    with pytest.raises(click.UsageError):
        parsed(["store", "gc", "everything"])


def test_the_verbs_that_are_only_parsed_exist() -> None:
    assert PARSED.keys() | CHEAPER.keys() <= main.commands.keys()


def test_every_verb_says_what_it_does() -> None:
    for name in main.commands:
        done = CliRunner().invoke(main, [name, "--help"])
        assert done.exit_code == 0
        assert len(done.output.splitlines()) > 3


@pytest.mark.parametrize(("page", "text"), [(page.name, text) for page, _, text in code("yaml")])
def test_every_space_file_of_the_pages_loads(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    spacefile.load(tmp_path / "mine.yaml")


@needs_mkdocs
def test_no_key_of_a_space_file_is_left_out() -> None:
    made = hooks()
    page = (DOCS / "space-file.md").read_text()
    assert {name for kind, name in made.MARK.findall(page) if kind == "keys"} == set(made.models())
    assert {name for kind, name in made.MARK.findall(page) if kind == "kinds"} == set(registry.FAMILIES)
    sections = dict(made.models())
    sections |= {f"{f}.{k}": registry.config_class(f, k) for f in registry.FAMILIES for k in registry.kinds(f)}
    silent = [
        f"{name}.{key}"
        for name, model in sections.items()
        for key in model.model_fields
        if key != "kind" and not made.said_of(name, key, model)
    ]
    assert silent == [], "say in docs/keys.yaml what these do"
    built = made.on_page_markdown(page)
    missing = [
        f"{name}.{key}"
        for name, model in sections.items()
        for key in model.model_fields
        if key != "kind" and made.table(name, model) not in built
    ]
    assert missing == []
    assert "| `lr` | number | `0.001` | above 0 | The learning rate's highest value. |" in built


@needs_mkdocs
def test_no_line_of_the_keys_is_about_nothing() -> None:
    made = hooks()
    sections = dict(made.models())
    sections |= {f"{f}.{k}": registry.config_class(f, k) for f in registry.FAMILIES for k in registry.kinds(f)}
    for written in made._written():
        section, _, key = written.rpartition(".")
        pattern = re.compile(re.escape(section).replace(r"\*", ".+"))
        having = [name for name, model in sections.items() if pattern.fullmatch(name) and key in model.model_fields]
        assert having, f"docs/keys.yaml: {written} is not a key"


def test_every_loss_has_its_formula() -> None:
    page = (DOCS / "objectives.md").read_text()
    assert [kind for kind in registry.kinds("losses") if f"**{kind}**" not in page] == []


@needs_mkdocs
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {path.name: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {page.with_suffix(".html").name for page in PAGES[1:]} <= pages.keys()
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(https?:)?//", re.IGNORECASE)
    assert [name for name, text in pages.items() if loads.search(text)] == []
    styles = (path.read_text() for path in (tmp_path / "site").rglob("*.css"))
    assert not any(re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style) for style in styles)
    assert pages["objectives.html"].count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') > 30
    assert "arithmatex" not in pages["objectives.html"], "a formula was not made into MathML"
    assert "<!-- k" not in pages["space-file.html"], "a table was not put in"


def test_the_symptoms_are_what_sweeper_says() -> None:
    source = " ".join(path.read_text() for path in (REPOSITORY / "sweeper").rglob("*.py"))
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", (DOCS / "troubleshooting.md").read_text())
    assert len(quoted) > 5
    for symptom in quoted:
        for part in filter(None, (part.strip() for part in re.split(r"\.\.\.|;", symptom))):
            assert part in source, symptom


TRAINS = """
import sys
from samples import trial_config, trial_data
from test_train import run
from sweeper import registry
assert registry.kinds("losses")["{kind}"], "it is listed"
loss = {{"ce": 1.0, "embedding": {{"kind": "{kind}", "weight": 1.0, "delta": 0.5}}}}
reports = []
run(trial_config(loss=loss, epochs=2), trial_data(taught=True), lambda report: reports.append(report) or True)
print(len(reports), all(report.loss == report.loss for report in reports))
"""


def test_the_loss_of_the_page_trains(tmp_path: Path) -> None:
    ((_, title, text),) = [block for block in code("python") if "title=" in block[1]]
    name = Path(title.partition('"')[2].rstrip('"'))
    assert name.parent == Path("sweeper/losses")
    assert len([line for line in text.splitlines() if line.strip() and not line.lstrip().startswith('"""')]) <= 20
    shutil.copytree(REPOSITORY / "sweeper", tmp_path / "sweeper", ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    shutil.copytree(
        REPOSITORY / "sweeper" / "zoo", tmp_path / "sweeper" / "zoo", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", TRAINS.format(kind=name.stem)],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "True"]
