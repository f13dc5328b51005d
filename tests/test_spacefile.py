"""Space files: what is right loads the same from its resolved form; what is wrong is said at its line, all at once."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from broken_spaces import BROKEN, GOOD
from command_line import environment

from sweeper import spacefile
from sweeper.errors import InputError, SpaceError
from sweeper.fingerprint import fingerprint
from sweeper.trial import TrainConfig, TrialConfig

REPOSITORY = Path(__file__).parents[1]
SHIPPED = sorted((REPOSITORY / "search_spaces").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        spacefile.load(write(tmp_path, text), overrides)
    assert caught.value.exit_status == 2
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


@pytest.mark.parametrize(("old", "new", "path", "fragments"), BROKEN, ids=[f"{b[2]}-{i}" for i, b in enumerate(BROKEN)])
def test_one_mistake_is_one_problem_at_its_line(
    tmp_path: Path, old: str, new: str, path: str, fragments: tuple[str, ...]
) -> None:
    assert GOOD.count(old) == 1, "the row must change exactly one place"
    text = GOOD.replace(old, new)
    found = problems(tmp_path, text)
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}: ")
    assert all(fragment in found[0] for fragment in fragments), found[0]
    assert not any(word in found[0].lower() for word in ("pydantic", "http", "input should", "value error"))
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "#!" in line]
    if not marked and new and "\n" not in new:
        marked = [number for number, line in enumerate(text.splitlines(), 1) if new in line]
    if marked:
        assert f"(x.yaml:{marked[0]}" in found[0]
    assert "(x.yaml:" in found[0]


def test_there_are_many_faults_and_each_is_one_of_its_own() -> None:
    assert len({(old, new) for old, new, _, _ in BROKEN}) == len(BROKEN) >= 120
    assert len({(path, fragments) for _, _, path, fragments in BROKEN}) > 0.9 * len(BROKEN)


def test_values_that_cannot_be_read_are_said_beside_what_is_wrong_with_others(tmp_path: Path) -> None:
    """Neither hides the other, and what follows from a value that cannot be read is not said as well."""
    text = GOOD.replace("train_per_class: 5", "train_per_class: .nan").replace(
        "kind: timm, model: test_vit", "kind: tim"
    )
    text = text.replace("ce: {uniform: [0, 1]}", "ce: {uniform: [0, !!float 1e999]}").replace("epochs: 3", "epochs: 0")
    text = text.replace("resources: {gpus_per_trial: 1}", "resources: {gpus_per_trial: 1, gpus_per_trial: -1}\n3: x")
    assert [line.partition(": ")[0] for line in problems(tmp_path, text)] == [
        "dataset.train_per_class",
        "teachers.vit.kind",
        "trial.loss.ce.uniform.1",
        "trial.train.epochs",
        "resources.gpus_per_trial",
        "3",
    ]


def bomb(levels: int) -> str:
    """Ten aliases of ten aliases of ...: 10 to the power of `levels` values from a kilobyte."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels))]) + "\n"


def chain(length: int) -> str:
    """Leaves of which each is there when the one before it is 1."""
    links = (f"    m{n}: {{choice: [1, 2], when: {{chain.m{n - 1}: 1}}}}" for n in range(1, length))
    return "\n".join(["trial:", "  chain:", "    m0: {choice: [1, 2]}", *links, ""])


def side_by_side(leaves: int, options: int) -> str:
    """Choices whose options would all have to meet each other."""
    values = list(range(options))
    return "trial:\n  many:\n" + "".join(f"    m{n}: {{choice: {values}}}\n" for n in range(leaves))


def contradiction(leaves: int) -> str:
    """A leaf that needs the first value of every other one, and something that is there for the second one only."""
    names = [f"m{n}" for n in range(leaves)]
    free = "".join(f"  {name}: {{choice: [1, 2]}}\n" for name in names)
    wanted = ", ".join(f"{name}: 1" for name in names)
    return f"trial:\n{free}  b: {{choice: [1], when: {{m0: 2}}}}\n  z: {{choice: [1], when: {{{wanted}, b: 1}}}}\n"


@pytest.mark.parametrize(
    ("head", "fragment"),
    [
        (bomb(12), "more than 100,000 values after expanding aliases"),
        (f"a: {'[' * 50}{']' * 50}\n", "x.yaml:1: nested deeper than 40 levels (in a.0.0."),
        (chain(1_000), "trial: has 1000 leaves, more than 300 (x.yaml:1)"),
        (chain(120), "trial.chain: 'chain' is not a setting"),
        (side_by_side(60, 40), "trial.many.m0: makes more than 10,000 corners of the space"),
        (contradiction(40), "trial.z: can never be active: its conditions contradict each other"),
        ("trial: {b: {" + ", ".join(f"c{n}: .nan" for n in range(5_000)) + "}}\n", " more problems"),
        ("".join(f"k{n}: 1\n" for n in range(3_000)), "more problems"),
    ],
    ids=["aliases", "depth", "long chain", "chain", "corners", "contradiction", "many faults", "many keys"],
)  # fmt: skip
def test_a_bomb_ends_in_a_sentence(tmp_path: Path, head: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        spacefile.load(write(tmp_path, head))
    lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert any(fragment in line for line in lines), lines[:5]
    assert len(lines) <= spacefile.MAX_LINES + 1
    assert max(map(len, lines)) < 3_000


def test_choices_with_too_many_combinations_are_named(tmp_path: Path) -> None:
    """Each list is short, and what the plan would have to go through is not."""
    names = [f"t{n}" for n in range(60)]
    teachers = "".join(f"  {name}: {{kind: timm, model: test_vit, weights: none}}\n" for name in names)
    text = GOOD.replace("teachers:\n", f"teachers:\n{teachers}").replace("[cnn, vit, none]", f"[{', '.join(names)}]")
    text = text.replace("        - 2\n", "".join(f"        - {n / 100}\n" for n in range(1, 101) if n < 100))
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith("trial: teacher, loss.embedding.kind, synthetic.ratio, ")
    assert "more than 10,000 combinations; shorten their choices (x.yaml:" in found[0]


# What no file's content is to blame for, or all of it at once: how the file is made, and what has to be said.
NO_EPOCHS = GOOD.replace("epochs: 3", "epochs: 0").encode()
FILES: dict[str, tuple[bytes | None, str]] = {
    "missing.yaml": (None, "missing.yaml: no such file"),
    "folder.yaml": (None, "folder.yaml: this is a folder"),
    "loop.yaml": (None, "loop.yaml: cannot be read: "),
    "huge.yaml": (None, "huge.yaml: larger than 1,000,000 bytes"),
    "empty.yaml": (b"", "empty.yaml: the file is empty"),
    "mark.yaml": (b"\xef\xbb\xbf", "mark.yaml: the file is empty"),
    "latin.yaml": ("name: gar\u00e7on\n".encode("latin-1"), "latin.yaml:1: not UTF-8 text (byte 0xe7)"),
    "wide.yaml": (GOOD.encode("utf-16"), "wide.yaml:1: not UTF-8"),
    "nul.yaml": (GOOD.encode().replace(b"good", b"go\0d"), "nul.yaml:1: "),
    "binary.yaml": (bytes(range(128)) * 3, "binary.yaml:1: "),
    "list.yaml": (b"- name: good\n", "list.yaml:1: a space file is a mapping"),
    "tab.yaml": (GOOD.replace("    ce:", "\tce:").encode(), "tab.yaml:24: a tab in the indentation; YAML takes spaces"),
    "two.yaml": (f"{GOOD}---\n{GOOD}".encode(), "two.yaml:40: a second document"),
    "open.yaml": (GOOD.replace("[cnn, vit, none]", "[cnn, vit, none").encode(), "open.yaml:13: not valid YAML: "),
    "bomb.yaml": (bomb(12).encode(), "bomb.yaml:5: more than 100,000 values"),
    "fault.yaml": (NO_EPOCHS, "trial.train.epochs: has to be at least 1; given 0 (fault.yaml:35)"),
    "name\n\x1b[2J.yaml": (NO_EPOCHS, "(name\\n\\x1b[2J.yaml:35)"),
}  # fmt: skip
LOOP = """
import contextlib, io, json, sys
from sweeper.cli import main
for name in json.loads(sys.argv[1]):
    for verb in ("plan", "run"):
        status, errors, output = None, io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
            try:
                main([verb, name], prog_name="sweeper")
            except SystemExit as error:
                status = error.code
        print(json.dumps([name, status, errors.getvalue(), output.getvalue()]))
"""


def test_the_command_line_refuses_each_with_exit_2_and_writes_nothing(tmp_path: Path) -> None:
    for name, (data, _) in FILES.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.yaml").mkdir()
    os.symlink("loop.yaml", tmp_path / "loop.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(100_000_000)  # takes no room on the disk
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", LOOP, json.dumps(list(FILES))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2 * len(FILES)
    for name, status, errors, output in answers:
        assert (status, output) == (2, ""), (name, errors)
        lines = errors.splitlines()
        assert len(lines) == 1, errors
        assert lines[0].startswith("error: ")
        assert FILES[name][1] in lines[0]
        assert lines[0].isprintable()
    assert done.stderr == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        spacefile.load(path)


def test_every_mistake_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    chosen = [
        "name: no",
        "train_per_class: true",
        "adapt: linear_prob",
        "        - 3 #!",
        "          - kdpe",
        "epochs: 2.5",
        "trials: 0",
    ]
    rows = [next(row for row in BROKEN if start in row[1]) for start in chosen]
    text = GOOD
    for old, new, _, _ in rows:
        text = text.replace(old, new)
    found = problems(tmp_path, text, ("trial.train.warmup=2", "finalists.sedes=3"))
    expected = [row[2] for row in rows] + ["trial.train.warmup", "finalists.sedes"]
    assert [line.partition(": ")[0] for line in found] == expected
    assert "(--set trial.train.warmup=2)" in found[-2]
    assert "did you mean 'seeds'? (--set finalists.sedes=3; allowed: count, seeds, ablate)" in found[-1]


def test_a_malformed_domain_does_not_hide_other_mistakes(tmp_path: Path) -> None:
    text = GOOD.replace("ce: {uniform", "ce: {unifrom").replace("epochs: 3", "epochs: many").replace("- kdep", "- kdpe")
    assert [line.partition(": ")[0] for line in problems(tmp_path, text)] == [
        "trial.loss.ce",
        "trial.loss.embedding.kind",
        "trial.train.epochs",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_come_back_from_their_resolved_form(path: Path, tmp_path: Path) -> None:
    loaded = spacefile.load(path)
    assert loaded.config.name == path.stem
    resolved = spacefile.resolved(loaded.config)
    again = spacefile.load(write(tmp_path, yaml.safe_dump(resolved, sort_keys=False)))
    assert spacefile.resolved(again.config) == resolved
    assert fingerprint(spacefile.identity(again.config)) == fingerprint(spacefile.identity(loaded.config))
    assert resolved["trial"]["train"]["warmup"] == TrainConfig().warmup
    for point in loaded.space.corners():
        TrialConfig.model_validate(point)


def test_loads_good(tmp_path: Path) -> None:
    loaded = spacefile.load(write(tmp_path, GOOD), ["trial.train.epochs=7", "teachers.vit.adapt=none"])
    assert loaded.space.leaves["train.epochs"] == 7
    assert loaded.config.teachers["vit"].adapt == "none"  # type: ignore[attr-defined]
    assert loaded.config.trial["train"]["lr"] == {"loguniform": [1e-4, 1e-2]}
    assert loaded.config.trial["synthetic"]["ratio"] == {"choice": [0, 1, 2]}
    assert loaded.path.endswith("x.yaml")


def test_wandb_form_and_defaults_written_out_are_the_same_run(tmp_path: Path) -> None:
    other = GOOD.replace("ce: {uniform: [0, 1]}", "ce: {distribution: uniform, min: 0, max: 1}")
    other = other.replace("{choice: [cnn, vit, none]}", "{values: [cnn, vit, none]}").replace(
        "epochs: 3", "epochs: {value: 3}"
    )
    other = other.replace("when: {loss.embedding", "when: {trial.loss.embedding")
    other = other.replace("per_image: 2", "per_image: 2, flip: false").replace("trials: 4", "trials: 4\n  sampler: tpe")
    first, second = (spacefile.load(write(tmp_path, text)).config for text in (GOOD, other))
    assert fingerprint(spacefile.identity(first)) == fingerprint(spacefile.identity(second))


def test_identity_changes_with_results_and_not_with_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeper.generators.diffusers import Config

    def key(*overrides: str) -> str:
        return fingerprint(spacefile.identity(spacefile.load(write(tmp_path, GOOD), overrides).config))

    assert key("resources.gpus_per_trial=0.5", "resources.workers_per_trial=2") == key()
    different = [
        key(f"{path}=3")
        for path in ("seed", "views.per_image", "search.trials", "trial.train.epochs", "synthetic.sd.steps")
    ]
    assert len({*different[:3], *different[4:]} | {key()}) == 5
    assert different[3] == key()  # the same value
    monkeypatch.setattr(Config, "EXECUTION_ONLY", frozenset({"steps"}), raising=False)
    assert key("synthetic.sd.steps=3") == key()
    assert key("synthetic.sd.max_ratio=3") != key()
    assert "steps" in spacefile.resolved(spacefile.load(write(tmp_path, GOOD)).config)["synthetic"]["sd"]


def test_identity_takes_every_setting_of_every_kind(tmp_path: Path) -> None:
    """A setting that a serializer drops would make two different runs look like one."""
    config = spacefile.load(write(tmp_path, GOOD)).config
    resolved = spacefile.resolved(config)
    for section, model in [
        (resolved["dataset"], config.dataset),
        (resolved["teachers"]["cnn"], config.teachers["cnn"]),
        (resolved["synthetic"]["sd"], config.synthetic["sd"]),
        (resolved["search"]["scheduler"], config.search.scheduler),
    ]:
        fields = type(model).model_fields
        unused = {name for name, field in fields.items() if field.exclude_if and field.exclude_if(getattr(model, name))}
        assert section.keys() == fields.keys() - unused
        assert all(getattr(model, name) == fields[name].get_default(call_default_factory=True) for name in unused)


def test_one_source_without_a_name_is_called_default(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  sd:\n    kind: diffusers\n    model: some/model\n    max_ratio: 2\n",
        "  kind: diffusers\n  model: m\n  max_ratio: 2\n",
    )
    assert problems(tmp_path, text)[0].startswith("trial.synthetic.source: 'sd' is not named under synthetic")
    loaded = spacefile.load(write(tmp_path, text.replace("source: sd", "source: default")))
    assert list(loaded.config.synthetic) == ["default"]
    assert problems(tmp_path, text.replace("model: m", "mdel: m").replace("source: sd", "source: default")) == [
        "synthetic.mdel: 'mdel' is not a setting of synthetic; did you mean 'model'? (x.yaml:9; allowed: kind, model,"
        " prompt, class_prompts, negative_prompt, class_ids, strength, scheduler, guidance, steps, size, precision,"
        " revision, max_ratio, filter, batch_size, compile, trust)",
    ]  # fmt: skip


def test_ranges_that_touch_zero_are_no_mistake_but_choices_that_train_nothing_are(tmp_path: Path) -> None:
    """`ce: {uniform: [0, 1]}` beside `kl.weight: 0` and no embedding never draws 0; a choice of 0 does."""
    text = GOOD.replace("kl: {weight: {uniform: [0, 2]}, temperature: 4}", "kl: {weight: 0}")
    spacefile.load(write(tmp_path, text))
    found = problems(tmp_path, text.replace("ce: {uniform: [0, 1]}", "ce: {choice: [1, 0]}"))
    assert len(found) == 1
    assert found[0].startswith("trial.loss: ")
    conditional = text.replace(
        "ce: {uniform: [0, 1]}", "ce: {choice: [0], when: {loss.embedding.kind: [kdep, info_nce]}}"
    )
    spacefile.load(write(tmp_path, conditional))


def test_three_choices_that_together_train_nothing(tmp_path: Path) -> None:
    """No corner shows all three at once."""
    text = GOOD.replace("ce: {uniform: [0, 1]}", "ce: {choice: [1, 0]}").replace(
        "weight: {uniform: [0, 2]}", "weight: {choice: [1, 0]}"
    )
    text = text.replace("          - none\n          - kdep\n", "          - kdep\n          - none\n")
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith("trial.loss: with teacher 'cnn', ce 0, kl.weight 0 and no embedding loss")


def test_ratio_is_checked_against_its_own_source(tmp_path: Path) -> None:
    text = GOOD.replace("    max_ratio: 2\n", "    max_ratio: 2\n  few: {kind: diffusers, model: m, max_ratio: 1}\n")
    text = text.replace("source: sd", "source: {choice: [sd, few]}")
    assert ["few.max_ratio, which is 1" in line for line in problems(tmp_path, text)] == [True]
    right = text.replace("        - 2\n", "").replace("source: {choice: [sd, few]}", "source: {choice: [sd, few]}")
    spacefile.load(write(tmp_path, right))


def test_sections_as_options(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  student:\n    model: {choice: [test_resnet, test_vit]}\n", "  student: {choice: [{model: a}, {mdoel: b}]}\n"
    )
    found = problems(tmp_path, text)
    assert [line.partition(": ")[0] for line in found] == ["trial.student.mdoel"]
    spacefile.load(write(tmp_path, text.replace("mdoel", "model")))


@pytest.mark.parametrize("trial", ["3", "[]", "", "{}"])
def test_a_trial_that_is_no_section(tmp_path: Path, trial: str) -> None:
    head, _, tail = GOOD.partition("trial:\n")
    found = problems(tmp_path, f"{head}trial: {trial}\n{tail[tail.index('search:') :]}")
    assert found[0].startswith("trial.student: is missing" if trial == "{}" else "trial: has to be a section; given")


def test_any_line_may_be_missing_or_replaced(tmp_path: Path) -> None:
    """Whatever is cut or put in, the outcome is a file that loads or a sentence: never another exception."""
    lines = GOOD.splitlines()
    junk = ["", "x", "- 1", "a: {choice: []}", "? 1", "when: {a: 1}", "kind: {choice: [a]}", "null", "model: [{}]"]
    for number, put in itertools.product(range(len(lines)), junk):
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        text = "\n".join([*lines[:number], indent + put, *lines[number + 1 :]])
        try:
            spacefile.load(write(tmp_path, text))
        except InputError as error:
            assert "x.yaml" in str(error)  # noqa: PT017 - some of these files are right


def test_many_bad_overrides_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        spacefile.load(write(tmp_path, GOOD), ["a", "name.x=3"])
    assert "--set a: needs" in str(caught.value)
    assert "--set name.x=3: name is 'good'" in str(caught.value)


def test_reading_a_space_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sweeper import spacefile; spacefile.load('search_spaces/datalimited.yaml');"
        "heavy = ('torch', 'ray', 'optuna', 'timm', 'diffusers', 'matplotlib', 'pandas');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
