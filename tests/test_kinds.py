"""`sweeper kinds`: what can stand after `kind:`, and what each loss needs."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from sweeper import config, registry, trial
from sweeper.cli import main
from sweeper.losses import ONLINE
from sweeper.registry import Settings


def settings() -> list[type[Settings]]:
    """Every section of a space file, those of all kinds as well."""
    for family in registry.FAMILIES:
        for kind in registry.kinds(family):
            registry.load(family, kind)
    found: list[type[Settings]] = [config.SweepConfig, trial.TrialConfig]
    for model in found:  # grows while it is read
        found += [other for other in Settings.__subclasses__() if other not in found]
        found += [other for other in model.__subclasses__() if other not in found]
    return [model for model in found if model.__module__.startswith("sweeper.")]


@pytest.mark.parametrize("model", settings(), ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_every_number_of_a_space_file_has_a_least_and_a_greatest_value(model: type[Settings]) -> None:
    """A slip such as 1e300 is told of at its line, and does not become an overflow in the tenth trial."""
    for name, field in model.model_fields.items():
        if not {int, float} & {*_types(field.annotation)}:
            continue
        for slip in (10**300, 1e300, -(10**300)):
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: slip})
            kinds = {error["type"] for error in caught.value.errors() if error["loc"][:1] == (name,)}
            assert kinds, f"{name}: {slip:g} is taken"


def _types(annotation: Any) -> Iterator[Any]:
    """What may stand there, of a union all of it; not what a list or a mapping holds."""
    if get_origin(annotation) is Annotated:
        yield from _types(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _types(one)
    else:
        yield annotation


def said(*arguments: str) -> list[str]:
    done = CliRunner().invoke(main, ["kinds", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_every_family_and_kind_is_listed_with_its_description() -> None:
    lines = said()
    for family in registry.FAMILIES:
        assert f"{family}:" in lines
        for kind, description in registry.kinds(family).items():
            assert f"  {kind:<16} {description}" in lines


@pytest.mark.parametrize("kind", registry.kinds("losses"))
def test_a_loss_is_followed_by_its_needs_and_its_paper(kind: str) -> None:
    lines = said("losses")
    (number,) = [i for i, line in enumerate(lines) if line.split()[:1] == [kind]]
    details, module = lines[number + 1], registry.load("losses", kind)
    needs = details.split("needs ")[1].split(";")[0].split(", ")
    assert needs == sorted(module.NEEDS)
    assert details.endswith(f"published weight {module.PUBLISHED_WEIGHT:g}; {module.PAPER}")
    assert ("runs the teacher in the loop" in details) == bool(module.NEEDS & ONLINE)


def test_the_losses_of_the_field_are_all_there() -> None:
    """METHOD sections 1 to 3; SSKD alone is missing (its rotated views are none of ours)."""
    cached = "kl lskd dkd dist align_uniform align cosine hint kdep sp cc rkd pkt vid crd info_nce seed n_pair soft_nn"
    cached += " barlow_twins vicreg itrd bingo srrl simkd"
    online = "fitnet at nst fsp ab ft ofd vid_maps jacobian reviewkd semckd"
    kinds = registry.kinds("losses")
    assert {kind for kind in kinds if registry.load("losses", kind).NEEDS & ONLINE} == set(online.split())
    assert set(kinds) == set(cached.split()) | set(online.split())
