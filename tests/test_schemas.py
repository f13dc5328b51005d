"""The published JSON Schemas: a space file's, for editors, and that of `export --format json`, for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_spaces import BROKEN, GOOD
from click.testing import CliRunner
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from run_samples import write_run

from sweeper import results_schema, space_schema
from sweeper.archive import export
from sweeper.cli import main
from sweeper.located_yaml import Document

REPOSITORY = Path(__file__).parents[1]
SCHEMAS = REPOSITORY / "sweeper" / "schemas"
SHIPPED = sorted((REPOSITORY / "search_spaces").rglob("*.yaml"))
# What a schema of types, names and ranges can say; the rest is about several settings together.
SAYABLE = ("is not a setting", "is not a kind of", "has to be", "is not allowed", "is missing", "needs a section with")
SAYABLE += ("needs a list", "is not a domain", "is not read")
NOT_SAYABLE = {
    "trial.student.model",  # there, but not for every teacher
    "trial.loss.embedding.w_unif",  # a setting of a kind that is not among the choices
}


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = json.loads((SCHEMAS / "space.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def errors(validator: Draft7Validator, path: Path) -> list[str]:
    """What is wrong with a file, read with the scalars of YAML 1.2 as editors do."""
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(Document(path).tree)]


@pytest.mark.parametrize("name", ["space", "results"])
def test_what_is_shipped_is_what_the_models_give(name: str) -> None:
    done = CliRunner().invoke(main, ["schema", name])
    assert done.exit_code == 0, done.output
    shipped = SCHEMAS / f"{name}.schema.json"
    assert shipped.read_text() == done.output, f"make it anew: sweeper schema {name} > {shipped}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_file_is_valid(validator: Draft7Validator, path: Path) -> None:
    assert errors(validator, path) == []


def test_what_a_schema_can_say_of_a_broken_file_it_says(validator: Draft7Validator, tmp_path: Path) -> None:
    """Of every fault of types, names, kinds and ranges that the reader finds; and never of the good file."""
    path, missed = tmp_path / "x.yaml", []
    path.write_text(GOOD)
    assert errors(validator, path) == []
    for old, new, where, fragments in BROKEN:
        path.write_text(GOOD.replace(old, new))
        is_sayable = any(words in fragments[0] for words in SAYABLE) and where not in NOT_SAYABLE
        if is_sayable and not Document(path).faults and not errors(validator, path):
            missed.append((where, new, fragments[0]))
    assert missed == []


def embedding(section: Any) -> dict[str, Any]:
    """The good file with another section at `trial.loss.embedding`."""
    tree: dict[str, Any] = yaml.safe_load(GOOD.replace("1e-4, 1e-2", "0.0001, 0.01"))
    tree["trial"]["loss"]["embedding"] = section
    return tree


@pytest.mark.parametrize(
    "section",
    [
        "none",
        {"kind": "kdep", "weight": 3},
        {"kind": "none", "weight": {"uniform": [0, 1]}},
        {"kind": {"choice": ["none", "kdep", "info_nce"]}, "weight": 1, "power": 2, "tau": {"uniform": [0.1, 0.2]}},
        {"kind": {"values": ["kdep", "crd"]}, "negatives": {"randint": [1, 9], "when": {"loss.embedding.kind": "crd"}}},
        {"choice": ["none", {"kind": "kdep", "weight": 3}]},
        {"kind": "info_nce", "tau": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}},
        {"kind": "info_nce", "dim": {"min": 8, "max": 64}},
        {"kind": "info_nce", "symmetric": {"value": True, "when": {"teacher": ["cnn", "vit"]}}},
    ],
)
def test_kinds_and_domains_may_stand_in_the_place_of_values(validator: Draft7Validator, section: Any) -> None:
    assert [error.message for error in validator.iter_errors(embedding(section))] == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "kdpe"}, "'kdpe' is not one of"),
        ({"kind": {"choice": ["kdep", "kdpe"]}}, "'kdpe' is not one of"),
        ({"kind": "kdep", "tau": 0.1}, "('tau' was unexpected)"),
        ({"kind": "info_nce", "tau": {"uniform": [-1, 1]}}, "-1 is less than or equal to the minimum of 0"),
        ({"kind": "info_nce", "tau": {"unifrom": [0.1, 1]}}, "('unifrom' was unexpected)"),
        (
            {"kind": "info_nce", "tau": {"uniform": [0.1, 1], "choice": [1]}},
            "'uniform' is not one of ['choice', 'when']",
        ),
        ({"kind": "info_nce", "dim": {"uniform": [8, 64]}}, "('uniform' was unexpected)"),
        (
            {"kind": "info_nce", "tau": {"choice": [0.1], "when": {"loss.embeding.kind": "x"}}},
            "'loss.embeding.kind' does not match",
        ),
    ],
)
def test_what_is_blamed_is_the_value_itself(validator: Draft7Validator, section: Any, words: str) -> None:
    best = best_match(validator.iter_errors(embedding(section)))
    assert best is not None
    assert words in best.message
    assert best.json_path.startswith("$.trial.loss.embedding")


def test_an_editor_has_something_to_say_of_kinds_and_settings(validator: Draft7Validator) -> None:
    definitions = validator.schema["definitions"]
    kinds = definitions["datasets"]["properties"]["kind"]
    assert dict(zip(kinds["enum"], kinds["enumDescriptions"], strict=True))["image_folder"].startswith("A folder of")
    said = definitions["TrainConfig"]["properties"]["epoch_size"]["description"]
    assert said.startswith("An epoch is `epoch_size` training samples")
    assert definitions["TrainConfig"]["properties"]["lr"]["default"] == 1e-3


def test_a_sentence_belongs_to_the_settings_that_it_names() -> None:
    text = "The `a` of it (Doe et al. 2020, arXiv 1). `b: x` is another.\n\n    Both `a` and `b` count."
    assert (
        space_schema.sentences_about(text, "a") == "The `a` of it (Doe et al. 2020, arXiv 1). Both `a` and `b` count."
    )
    assert space_schema.sentences_about(text, "b") == "`b: x` is another. Both `a` and `b` count."
    assert space_schema.sentences_about(text, "c") == ""


def test_an_export_is_valid_and_has_every_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    (path,) = export(run, ["json"], tmp_path)
    schema = json.loads((SCHEMAS / "results.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    document = json.loads(path.read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(document)] == []
    assert document["version"] == results_schema.VERSION
    assert set(schema["required"]) == document.keys()
    assert document["trials"] == run.read_trials()
    assert document["curves"] == run.read_curves()
    assert document["ledger"] == run.read_ledger()


def test_an_export_with_a_column_that_changed_its_meaning_is_not_valid(tmp_path: Path) -> None:
    document = results_schema.document(write_run(tmp_path / "tiny" / "a1"))
    validator = Draft7Validator(results_schema.results_schema())
    document["pareto"][0]["accuracy_test"] = "97.9%"
    del document["pareto"][1]["rank"]
    assert [error.json_path for error in validator.iter_errors(document)] == [
        "$.pareto[0].accuracy_test",
        "$.pareto[1]",
    ]
