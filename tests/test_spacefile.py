"""Space files: what is right loads the same from its resolved form; what is wrong is said at its line, all at once."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweeper import spacefile
from sweeper.errors import InputError, SpaceError
from sweeper.fingerprint import fingerprint
from sweeper.trial import TrainConfig, TrialConfig

REPOSITORY = Path(__file__).parents[1]
SHIPPED = sorted((REPOSITORY / "search_spaces").glob("*.yaml"))
GOOD = """\
name: good
dataset: {kind: digits, train_per_class: 5}
views: {per_image: 2}
teachers:
  cnn: {kind: timm, model: test_resnet, weights: none}
  vit: {kind: timm, model: test_vit, weights: none}
synthetic:
  sd:
    kind: diffusers
    model: some/model
    max_ratio: 2
trial:
  teacher: {choice: [cnn, vit, none]}
  student:
    model: {choice: [test_resnet, test_vit]}
  synthetic:
    source: sd
    ratio:
      choice:
        - 0
        - 1
        - 2
  loss:
    ce: {uniform: [0, 1]}
    kl: {weight: {uniform: [0, 2]}, temperature: 4}
    embedding:
      kind:
        choice:
          - none
          - kdep
          - info_nce
      weight: {loguniform: [0.1, 10]}
      tau: {uniform: [0.05, 0.5], when: {loss.embedding.kind: info_nce}}
  train:
    epochs: 3
    lr: {loguniform: [1e-4, 1e-2]}
search:
  trials: 4
resources: {gpus_per_trial: 1}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        spacefile.load(write(tmp_path, text), overrides)
    assert caught.value.exit_status == 2
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


# ruff: noqa: E501 - one row a line
# Each row: what is replaced by what (`#!` marks the line that has to be blamed), the path, fragments of the sentence.
# fmt: off
BROKEN: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("name: good", "name: no good #!", "name", ("given 'no good'", "may hold letters")),
    ("name: good", "name: ../up #!", "name", ("given '../up'",)),
    ("name: good", "nmae: good #!\nname: x", "nmae", ("is not a setting", "did you mean 'name'?", "allowed: name, seed")),
    ("name: good\n", "", "name", ("is missing",)),
    ("kind: digits", "kind: digts", "dataset.kind", ("'digts' is not a kind of datasets; did you mean 'digits'?",)),
    ("kind: digits", "kind: {choice: [digits]}", "dataset.kind", ("is not a kind of datasets",)),
    ("dataset: {kind: digits, train_per_class: 5}", "dataset: digits #!", "dataset", ("needs a section with `kind:`",)),
    ("dataset: {kind: digits, train_per_class: 5}", "dataset: {} #!", "dataset.kind", ("is missing", "allowed: digits")),
    ("train_per_class: 5", "train_per_clas: 5", "dataset.train_per_clas", ("did you mean 'train_per_class'?",)),
    ("train_per_class: 5", "train_per_class: true", "dataset.train_per_class", ("a number; given true",)),
    ("per_image: 2", "per_image: 0", "views.per_image", ("has to be at least 1; given 0",)),
    ("per_image: 2", "per_image: 2.5", "views.per_image", ("has to be a whole number; given 2.5",)),
    ("per_image: 2", "per_image: {choice: [1, 2]}", "views.per_image", ("is a domain", "only leaves under trial")),
    ("weights: none}\n  vit", "weights: none, adapt: linear_prob} #!\n  vit", "teachers.cnn.adapt", ("'linear_probe'?",)),
    ("kind: timm, model: test_vit", "kind: tim, model: test_vit", "teachers.vit.kind", ("did you mean 'timm'?",)),
    ("teachers:\n", "teachers: #!\n  none: {kind: timm, model: test_vit}\n", "teachers", ("cannot name a teacher",)),
    ("    model: some/model\n", "", "synthetic.sd.model", ("is missing",)),
    ("max_ratio: 2", "max_ratio: lots #!", "synthetic.sd.max_ratio", ("has to be a number; given 'lots'",)),
    ("choice: [cnn, vit, none]", "choice: [cnn, vti, none]", "trial.teacher", ("'vti' is not named", "allowed: cnn, vit, none")),
    ("teacher: {choice: [cnn, vit, none]}", "teacher: {uniform: [0, 1]} #!", "trial.teacher", ("constant or a choice",)),
    ("choice: [cnn, vit, none]", "choice: [cnn, 5]", "trial.teacher", ("has to be text; given 5",)),
    ("choice: [cnn, vit, none]", "chioce: [cnn]", "trial.teacher", ("did you mean 'choice'?",)),
    ("source: sd", "source: ds #!", "trial.synthetic.source", ("'ds' is not named under synthetic", "allowed: sd")),
    ("    source: sd\n", "", "trial.synthetic.ratio", ("1 needs a source of images", "one of: sd")),
    ("        - 2\n", "        - 3 #!\n", "trial.synthetic.ratio", ("3 is more than synthetic.sd.max_ratio, which is 2",)),
    ("        - 1\n", "        - -1 #!\n", "trial.synthetic.ratio", ("has to be at least 0; given -1",)),
    ("ratio:\n      choice:\n        - 0\n        - 1\n        - 2\n", "ratio: {uniform: [0, 1]} #!\n", "trial.synthetic.ratio", ("constant or a choice", "largest")),
    ("  student:\n    model: {choice: [test_resnet, test_vit]}", "  student: {init: random} #!", "trial.student.model", ("is missing",)),
    ("model: {choice: [test_resnet, test_vit]}", "model: x\n    inti: random #!", "trial.student.inti", ("'init'?",)),
    (
        "model: {choice: [test_resnet, test_vit]}",
        "model: {choice: [test_vit], when: {teacher: cnn}} #!",
        "trial.student.model",
        ("has no default", "when teacher is cnn"),
    ),
    ("ce: {uniform: [0, 1]}", "ce: {uniform: [-1, 1]} #!", "trial.loss.ce", ("at least 0; given uniform -1 to 1",)),
    ("ce: {uniform: [0, 1]}", "ce: {uniform: [1, 0]} #!", "trial.loss.ce", ("uniform needs low < high",)),
    ("ce: {uniform: [0, 1]}", "ce: true #!", "trial.loss.ce", ("has to be a number; given true",)),
    ("ce: {uniform: [0, 1]}", "ce: {choice: [1, false]} #!", "trial.loss.ce", ("has to be a number; given false",)),
    ("temperature: 4}", "temperature: 0}", "trial.loss.kl.temperature", ("has to be greater than 0; given 0",)),
    ("temperature: 4}", "temprature: 4}", "trial.loss.kl.temprature", ("did you mean 'temperature'?",)),
    (
        "          - kdep\n",
        "          - kdpe #!\n",
        "trial.loss.embedding.kind",
        ("'kdpe' is not a kind of losses; did you mean 'kdep'? (", "allowed: none, ", "; `sweeper kinds losses` lists them)"),
    ),
    ("          - kdep\n", "          - kll #!\n", "trial.loss.embedding.kind", ("'kll' is not a kind of losses",)),
    ("weight: {loguniform: [0.1, 10]}", "weight: {uniform: [-1, 1]} #!", "trial.loss.embedding.weight", ("at least 0",)),
    ("weight: {loguniform: [0.1, 10]}", "wieght: 1 #!", "trial.loss.embedding.wieght", ("did you mean 'weight'?",)),
    ("{uniform: [0.05, 0.5]", "{uniform: [-2, 0.5]", "trial.loss.embedding.tau", ("greater than 0; given uniform -2",)),
    ("      tau: {", "      w_unif: 3 #!\n      tau: {", "trial.loss.embedding.w_unif", ("not a setting of info_nce or kdep", "align_uniform has it")),
    ("embedding.kind: info_nce", "embedding.kind: info_nec", "trial.loss.embedding.tau", ("did you mean 'info_nce'?",)),
    ("{loss.embedding.kind: info", "{loss.embeding.kind: info", "trial.loss.embedding.tau", ("'loss.embedding.kind'?",)),
    ("epochs: 3", "epochs: 2.5 #!", "trial.train.epochs", ("has to be a whole number; given 2.5",)),
    ("epochs: 3", "schedule: cosin #!", "trial.train.schedule", ("'cosin' is not allowed; did you mean 'cosine'?",)),
    ("lr: {loguniform: [1e-4, 1e-2]}", "lr: {distribution: log_uniform, min: -4, max: -2} #!", "trial.train.lr", ("log_uniform_values",)),
    ("lr: {loguniform: [1e-4, 1e-2]}", "lr: {min: 0.0, max: 0.1} #!", "trial.train.lr", ("greater than 0; given uniform 0 to",)),
    ("lr: {loguniform: [1e-4, 1e-2]}", "lr: [1, 2] #!", "trial.train.lr", ("has to be a number; given [1, 2]",)),
    ("lr: {loguniform: [1e-4, 1e-2]}", "lr: {log: [1, 2]} #!", "trial.train.lr", ("has to be a number; given a section with log",)),
    ("search:\n  trials: 4", "search: {sampler: tpe} #!", "search", ("give a budget",)),
    ("trials: 4", "trials: 0 #!", "search.trials", ("has to be at least 1; given 0",)),
    ("trials: 4", "trials: 4\n  sampler: tp #!", "search.sampler", ("did you mean 'tpe'?", "allowed: 'tpe', 'nsga2'")),
    ("trials: 4", "trials: 4\n  objectives: {accuracy: min} #!", "search.objectives", ("given accuracy: min",)),
    ("trials: 4", "trials: 4\n  objectives: {acuracy: max} #!", "search.objectives.acuracy", ("did you mean 'accuracy'?",)),
    ("trials: 4", "trials: 4\n  scheduler: {kind: ashaa} #!", "search.scheduler.kind", ("did you mean 'asha'?",)),
    ("trials: 4", "trials: 4\n  scheduler: {kind: asha, reduction: 1} #!", "search.scheduler.reduction", ("greater than 1",)),
    ("resources: {gpus_per_trial: 1}", "resources: 3 #!", "resources", ("has to be a section; given 3",)),
    ("gpus_per_trial: 1", "gpus_per_trail: 1", "resources.gpus_per_trail", ("did you mean 'gpus_per_trial'?",)),
] 
# fmt: on


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
        assert section.keys() == type(model).model_fields.keys()


def test_one_source_without_a_name_is_called_default(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  sd:\n    kind: diffusers\n    model: some/model\n    max_ratio: 2\n",
        "  kind: diffusers\n  model: m\n  max_ratio: 2\n",
    )
    assert problems(tmp_path, text)[0].startswith("trial.synthetic.source: 'sd' is not named under synthetic")
    loaded = spacefile.load(write(tmp_path, text.replace("source: sd", "source: default")))
    assert list(loaded.config.synthetic) == ["default"]
    assert problems(tmp_path, text.replace("model: m", "mdel: m").replace("source: sd", "source: default")) == [
        "synthetic.model: is missing (x.yaml:7)",
        "synthetic.mdel: 'mdel' is not a setting of synthetic; did you mean 'model'? (x.yaml:9; allowed: kind, model, prompt,"
        " class_ids, guidance, steps, size, precision, revision, max_ratio, batch_size)",
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
    assert [line.partition(": ")[0] for line in found] == ["trial.student.model", "trial.student.mdoel"]
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
        "print([m for m in ('torch', 'ray', 'optuna', 'timm', 'diffusers', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
