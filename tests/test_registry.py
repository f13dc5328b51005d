"""Kinds are files: what stands in a family's folder can stand after `kind:`, and every file keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import sweeper.losses
from sweeper import registry
from sweeper.errors import InputError
from sweeper.registry import FAMILIES, Settings

REPOSITORY = Path(__file__).parents[1]
FUNCTIONS = {
    "datasets": ("index", "decode"),
    "teachers": ("build", "identity"),
    "generators": ("build", "identity"),
    "filters": ("build", "identity"),
    "losses": ("build",),
    "schedulers": ("build",),
    "trackers": ("start",),
}
EVERY_KIND = [(family, kind) for family in FAMILIES for kind in registry.kinds(family)]
HEAVY = (
    "torch",
    "torchvision",
    "datasets",
    "timm",
    "diffusers",
    "ray",
    "optuna",
    "matplotlib",
    "sklearn",
    "transformers",
    "mlflow",
    "wandb",
    "tensorboardX",
)


def test_every_family_has_kinds() -> None:
    assert {family for family, _ in EVERY_KIND} == set(FAMILIES)


@pytest.mark.parametrize(("family", "kind"), EVERY_KIND)
def test_a_kind_keeps_the_contract(family: str, kind: str) -> None:
    description = registry.kinds(family)[kind]
    assert description
    assert description[0].isupper() or description[0].isdigit()
    module = registry.load(family, kind)
    config = registry.config_class(family, kind)
    assert issubclass(config, Settings)
    assert config.__module__ == module.__name__
    assert get_args(config.model_fields["kind"].annotation) == (kind,)
    assert config.model_fields["kind"].default == kind
    assert config.__doc__
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    made_of_others = "members" in config.model_fields  # an ensemble is never built
    assert made_of_others or all(callable(getattr(module, function, None)) for function in FUNCTIONS[family])
    execution_only = getattr(config, "EXECUTION_ONLY", frozenset())
    assert execution_only <= config.model_fields.keys() - {"kind"}


@pytest.mark.parametrize("kind", registry.kinds("losses"))
def test_a_loss_has_a_weight_and_says_what_it_needs(kind: str) -> None:
    module = registry.load("losses", kind)
    assert module.NEEDS <= sweeper.losses.INPUTS
    field = module.Config.model_fields["weight"]
    assert any(getattr(bound, "ge", None) == 0 for bound in field.metadata)


def test_settings_are_read_without_heavy_libraries() -> None:
    """`sweeper kinds` and the reader of a space file import every Config; none may cost a second of torch."""
    code = (
        "import sys; from sweeper import registry\n"
        "for family in registry.FAMILIES:\n"
        "    for kind in registry.kinds(family): registry.config_class(family, kind)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_new_file_is_a_new_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "losses"
    folder.mkdir()
    (folder / "_private.py").write_text("raise SystemExit\n")
    (folder / "brand_new.py").write_text(
        '"""A new loss.\n\nIts long story."""\n'
        "from typing import Literal\n"
        "from sweeper.registry import Settings\n"
        'class Config(Settings):\n    kind: Literal["brand_new"] = "brand_new"\n'
    )
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr(sweeper.losses, "__path__", [*sweeper.losses.__path__, str(folder)])
    registry.kinds.cache_clear()
    try:
        assert registry.kinds("losses") == {"brand_new": "A new loss."}
        assert registry.config_class("losses", "brand_new")().model_dump() == {"kind": "brand_new"}
    finally:
        registry.kinds.cache_clear()
        sys.modules.pop("sweeper.losses.brand_new", None)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'kdpe' is not a kind of losses; did you mean 'kdep'\? \(allowed: .*kdep"):
        registry.load("losses", "kdpe")
    with pytest.raises(InputError, match="'loses' is not one; allowed: datasets, "):
        registry.kinds("loses")


def test_settings_are_frozen_and_refuse_unknown_keys() -> None:
    config = registry.config_class("losses", "kl")
    with pytest.raises(ValueError, match="Extra inputs"):
        config.model_validate({"kind": "kl", "wieght": 1})
    with pytest.raises(ValueError, match="frozen"):
        config().weight = 3  # type: ignore[attr-defined]
