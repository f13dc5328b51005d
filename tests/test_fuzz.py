"""Whatever a space file holds, its reader answers with a `SpaceFile` or with an `InputError` and nothing else.

The examples are the same in every run; `FUZZ_EXAMPLES=10000 pytest tests/test_fuzz.py` draws as many new ones a test.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_spaces import GOOD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeper import spacefile
from sweeper.domain import KINDS
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # of a long list of places
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "250")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TREE: dict[str, Any] = yaml.safe_load(GOOD.replace("1e-4", "1.0e-4").replace("1e-2", "1.0e-2"))
PLACED = re.compile(r"x\.yaml|--set ")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.yaml"


def loads_or_is_refused(path: Path, data: bytes, overrides: tuple[str, ...] = ()) -> None:
    """What loads comes back the same from its resolved form; what does not is said in one line a fault."""
    path.write_bytes(data)
    try:
        loaded = spacefile.load(path, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(PLACED.search(line) and line.isprintable() for line in lines), lines
        return
    resolved = spacefile.resolved(loaded.config)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    again = spacefile.load(path)
    assert spacefile.resolved(again.config) == resolved
    assert fingerprint(spacefile.identity(again.config)) == fingerprint(spacefile.identity(loaded.config))


# ------------------------------------------------------------------------------------------------- bytes and text


@fuzzed
@given(data=st.binary(max_size=200))
def test_any_bytes(path: Path, data: bytes) -> None:
    loads_or_is_refused(path, data)


@fuzzed
@given(text=st.text(st.sampled_from("ab01:{}[],-&*!|>'\"%@` \n\t#?<.e_xoé\u2028\ufeff\U0001f600"), max_size=60))
def test_text_of_yamls_own_characters(path: Path, text: str) -> None:
    loads_or_is_refused(path, text.encode())


@fuzzed
@given(
    place=st.integers(0, len(GOOD) - 1),
    length=st.integers(0, 30),
    put=st.text(st.sampled_from(" \n:{}[],-&*!'\"#ab01.e_x\t<|\x00\u2028"), max_size=12),
)
def test_a_file_with_a_piece_cut_out_and_another_put_in(path: Path, place: int, length: int, put: str) -> None:
    loads_or_is_refused(path, (GOOD[:place] + put + GOOD[place + length :]).encode())


# ------------------------------------------------------------------------------------------------- trees

HUGE = [10**400, -(10**30), 2**63, 2**53 + 1, 1e308, -1e308, 1.7e308, 5e-324, 1e-300, float("nan"), float("inf")]
WORDS = [
    *("none", "cnn", "vit", "cnn+vit", "cnn+cnn", "+", "sd", "kdep", "info_nce", "jacobian", "ensemble", "digits"),
    *("image_folder", "test_resnet", "cosine", "mo_asha", "trial.teacher", "loss.embedding.kind", "teacher", "."),
    *("", " ", "a.b", "\n", "\x1b[2J", "\ud800", "\x00", "~", "no", "1e-4", "0x" + "f" * 290, "1__0", "é", "x" * 400),
]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(width=32)
    | st.sampled_from(HUGE)
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
    | st.dates()
    | st.binary(max_size=3)
)
keys = st.sampled_from([*WORDS, *KINDS, "when", "values", "value", "distribution", "min", "max", "q", "kind", "weight"])
domains = st.one_of(
    st.fixed_dictionaries({"choice": st.lists(scalars, max_size=4)}),
    *(
        st.fixed_dictionaries({kind: st.lists(scalars, min_size=2, max_size=3)})
        for kind in ("uniform", "loguniform", "randint", "quniform")
    ),
    st.fixed_dictionaries(
        {"distribution": st.sampled_from(["uniform", "q_uniform", "int_uniform", "log_uniform", "constant", 3])},
        optional={"min": scalars, "max": scalars, "q": scalars, "values": st.lists(scalars), "value": scalars},
    ),
)
paths = st.sampled_from(
    ["teacher", "synthetic.ratio", "loss.embedding.kind", "loss.embedding", "loss.ce", "student.model.x", "nobody"]
)
conditions = st.dictionaries(paths, scalars | st.lists(scalars, max_size=3), max_size=3)
conditional = st.builds(lambda domain, when: {**domain, "when": when}, domains, conditions)
values = st.recursive(
    scalars | domains | conditional,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every node but the root, as the keys that lead to it."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*above, key)
        yield from places(child, (*above, key))


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


PLACES = list(places(TREE))
mutations = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from(["delete", "replace", "add", "copy"]),
        values,
        keys,
        st.sampled_from(PLACES),
    ),
    min_size=1,
    max_size=3,
)


def mutated(changes: list[tuple[Any, ...]]) -> Any:
    """The tree with nodes deleted, replaced, put beside others or copied from elsewhere, as far as they are there."""
    tree = copy.deepcopy(TREE)
    for place, what, value, key, source in changes:
        try:
            parent = at(tree, place[:-1])
            if what == "delete":
                del parent[place[-1]]
            elif what == "replace":
                parent[place[-1]] = copy.deepcopy(value)
            elif what == "copy":
                parent[place[-1]] = copy.deepcopy(at(tree, source))
            elif isinstance(parent, dict):
                parent[key] = copy.deepcopy(value)
            else:
                parent.append(copy.deepcopy(value))
        except (KeyError, IndexError, TypeError, AttributeError):  # an earlier change took the place away
            continue
    return tree


@fuzzed
@given(changes=mutations)
def test_a_right_file_with_nodes_changed(path: Path, changes: list[tuple[Any, ...]]) -> None:
    text = yaml.safe_dump(mutated(changes), sort_keys=False, allow_unicode=True)
    loads_or_is_refused(path, text.encode("utf-8", "surrogatepass"))


@fuzzed
@given(place=st.sampled_from(PLACES), value=values, cut=st.integers(0, 400))
def test_a_right_file_with_an_override(path: Path, place: tuple[Any, ...], value: Any, cut: int) -> None:
    dotted = ".".join(map(str, place))
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n")
    loads_or_is_refused(path, GOOD.encode(), (f"{dotted}={text}", f"{dotted}={text[:cut]}"))
