"""`sweeper kinds`: what can stand after `kind:`, and what each loss needs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sweeper import registry
from sweeper.cli import main
from sweeper.losses import ONLINE


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
