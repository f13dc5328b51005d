"""Reading YAML: scalars, lines, overrides, and files that are broken or hostile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.errors import InputError
from sweeper.located_yaml import MAX_BYTES, MAX_DEPTH, Document


def document(tmp_path: Path, text: str | bytes) -> Document:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Document(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """What ends the reading, or every fault of a single value, with its path and line."""
    try:
        faults = document(tmp_path, text).faults
    except InputError as error:
        return str(error).replace(f"{tmp_path}/", "")
    assert faults
    return "\n".join(str(fault).replace(f"{tmp_path}/", "") for fault in faults)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("none", "none"),
        ('"1e-4"', "1e-4"),
        ("'true'", "true"),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1__0", "1__0"),
        ("1_", "1_"),
        ("1_.5", "1_.5"),
        ("18446744073709551615", 2**64 - 1),
        ("1.2.3", "1.2.3"),
        ("zoo:cnn", "zoo:cnn"),
        ("[1, 2e1]", [1, 20.0]),
    ],
)
def test_scalars(tmp_path: Path, scalar: str, value: Any) -> None:
    got = document(tmp_path, f"a: {scalar}\n").tree["a"]
    assert got == value
    assert type(got) is type(value)


def test_agrees_with_pyyaml_on_what_it_writes(tmp_path: Path) -> None:
    generator = random.Random(0)

    def tree(depth: int) -> Any:
        kind = generator.choice(["dict", "list", "leaf"]) if depth else "leaf"
        if kind == "dict":
            return {f"k{i}": tree(depth - 1) for i in range(generator.randint(0, 3))}
        if kind == "list":
            return [tree(depth - 1) for _ in range(generator.randint(0, 3))]
        return generator.choice([None, True, 3, -2.5, 1e-7, "text", "no: 'x'", "12", "a\nb", "é", "<<", "", "~"])

    for _ in range(100):
        written = {"root": tree(4)}
        for style in (None, True, False):
            assert document(tmp_path, yaml.safe_dump(written, default_flow_style=style)).tree == written


def test_origin_is_the_line_of_each_path(tmp_path: Path) -> None:
    read = document(
        tmp_path, "a:\n  b: 1\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n# comment\nf: &anchor\n  g: 1\nh: *anchor\n"
    )
    lines = {path: read.origin(path).rpartition(":")[2] for path in ("a", "a.b", "a.c.1", "a.c.1.e", "f.g", "h", "h.g")}
    assert lines == {"a": "1", "a.b": "2", "a.c.1": "5", "a.c.1.e": "6", "f.g": "9", "h": "10", "h.g": "10"}
    assert read.origin("a.missing.path").endswith("x.yaml:1")
    assert read.origin("nowhere").endswith("x.yaml:1")


def test_anchors_and_merges(tmp_path: Path) -> None:
    read = document(tmp_path, "base: &base {lr: 1, wd: 2}\na:\n  <<: *base\n  lr: 3\nb: *base\n")
    assert read.tree["a"] == {"lr": 3, "wd": 2}
    assert read.tree["b"] == {"lr": 1, "wd": 2}
    assert read.origin("a.wd").endswith(":3")
    assert read.origin("a.lr").endswith(":4")
    read.override("a.wd=9")
    assert read.tree["base"]["wd"] == 2


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    assert document(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: x\r\n").tree == {"a": 1, "b": "x"}


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["x.yaml: the file is empty"]),
        ("# only a comment\n", ["the file is empty"]),
        ("- a\n", ["x.yaml:1", "a mapping", "a list"]),
        ("just words\n", ["x.yaml:1", "this is text"]),
        ("a: 1\na: 2\n", ["a: given twice, first in line 1; keep one (x.yaml:2)"]),
        (
            "s:\n  b: 1\n  c: 1\n  b: 2\nq: {z: 1, z: 2}\n",
            ["s.b: given twice, first in line 2; keep one (x.yaml:4)", "q.z: given twice"],
        ),
        ("a:\n\tb: 1\n", ["x.yaml:2", "a tab"]),
        ("a: [1, 2\nb: 3\n", ["not valid YAML"]),
        ("a: 'open\n", ["not valid YAML"]),
        ("a: b: c\n", ["x.yaml:1", "not valid YAML"]),
        ("a: 1\n  b: 2\n", ["x.yaml:2", "not valid YAML"]),
        ("a: 1\n---\nb: 2\n", ["x.yaml:2", "second document"]),
        ("a: 1\nb: *nobody\n", ["x.yaml:2", "*nobody"]),
        ("a: &a [*a]\n", ["a.0: *a refers to no earlier &a (x.yaml:1)"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["x.yaml:1", "the tag"]),
        ("a: !custom 3\n", ["the tag !custom"]),
        ("a: .nan\n", ["x.yaml:1", "not a finite number"]),
        ("a: 1\nb: -.inf\n", ["b: -.inf is not a finite number (x.yaml:2)"]),
        ("a: 1e999\n", ["not a finite number"]),
        ("a: 0x" + "f" * 290, ["a: 0xfff", "... is beyond 64 bits (x.yaml:1)"]),
        ("a: " + "1" * 5_000, ["is beyond 64 bits"]),
        ("a: [1, 18446744073709551616]", ["a.1: 18446744073709551616 is beyond 64 bits (x.yaml:1)"]),
        ("a: -1" + "0" * 40, ["is beyond 64 bits"]),
        ("a: .nan\nb: [1\n", ["a: .nan is not a finite number (x.yaml:1)", "x.yaml:3: not valid YAML"]),
        ("a:\n  b: *x\n  c: .inf\n", ["a.b: *x refers", "a.c: .inf is not"]),
        ("s:\n  t: {u: [1\n", ["x.yaml:3: not valid YAML", "(in s.t.u.0)"]),
        ("? " + "k" * 30_000 + "\n: [" + "1, " * 1_000 + "]", ["x.yaml:2: the keys are too long"]),
        ("1: a\n", ["the key 1 has to be text"]),
        ("[1, 2]: a\n", ["the key [1, 2] has to be text"]),
        ("a:\n  <<: 3\n", ["x.yaml:2", "`<<` merges"]),
        ("a: \x07\n", ["x.yaml:1"]),
        (b"a: 1\nb: \xff\xfe\n", ["x.yaml:2", "not UTF-8"]),
        ("a: 1\n".encode("utf-16"), ["not UTF-8"]),
        (b"\x00\x01\x02", ["x.yaml:1"]),
        ("a: " + "[" * (MAX_DEPTH + 10) + "]" * (MAX_DEPTH + 10), ["x.yaml:1", "nested deeper"]),
        ("a: " + "[" * 200_000, ["x.yaml:1"]),
        ("a: " + "{b: " * 100_000, ["x.yaml:1"]),
        (b"a: " + b"x" * MAX_BYTES, ["larger than"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_refuses_in_a_sentence(tmp_path: Path, text: str | bytes, fragments: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert all(fragment in message for fragment in fragments), message
    assert len(message) < 500


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "after expanding aliases" in refusal(tmp_path, "\n".join(levels))


def test_aliases_may_not_nest_a_file_deeper_than_it_may_be_written(tmp_path: Path) -> None:
    """Each is shallow by itself; what they make together would end in a RecursionError."""
    deep = "l0: &l0 x\n" + "".join(f"l{n}: &l{n} {'[' * 30}*l{n - 1}{']' * 30}\n" for n in range(1, 50))
    assert "x.yaml:3: nested deeper than 40 levels" in refusal(tmp_path, deep)


def test_random_bytes_never_escape_as_another_exception(tmp_path: Path) -> None:
    generator = random.Random(1)
    alphabet = b"ab:{}[],-&*!|>'\"%@` \n\t#?<1.e\x00\xc3\xa9"
    for _ in range(500):
        text = bytes(generator.choice(alphabet) for _ in range(generator.randint(1, 30)))
        try:
            document(tmp_path, text)
        except InputError as error:
            assert "x.yaml" in str(error) or "given twice" in str(error)  # noqa: PT017 - only some texts are refused


def test_missing_folder_and_odd_paths(tmp_path: Path) -> None:
    (tmp_path / "beside.yaml").write_text("a: 1")
    with pytest.raises(InputError, match=r"missing\.yaml: no such file \(there are: .*beside\.yaml\)"):
        Document(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="this is a folder"):
        Document(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        Document(tmp_path / "beside.yaml" / "below.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Document("nul\x00.yaml")


def test_override(tmp_path: Path) -> None:
    read = document(tmp_path, "a:\n  b: {uniform: [0, 1]}\n  c: 2\n")
    read.override("a.b=1e-3")
    read.override("a.d.e={choice: [x, 'y=z']}")
    read.override("f=")
    assert read.tree == {"a": {"b": 1e-3, "c": 2, "d": {"e": {"choice": ["x", "y=z"]}}}, "f": None}
    assert read.origin("a.b.uniform.0") == read.origin("a.b") == "--set a.b=1e-3"
    assert read.origin("a.d.e.choice.0") == "--set a.d.e={choice: [x, 'y=z']}"
    assert read.origin("a.c").endswith("x.yaml:3")


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("a", "needs the form a.b=value"),
        ("=3", "needs the form"),
        ("a..b=3", "needs the form"),
        ("a.b.c=3", "a.b is 1"),
        ("a.b=[1", "not valid YAML"),
        ("a.b={c: 1, c: 2}", "given twice"),
        ("a.b=.inf", "not a finite number"),
        ("a" + ".a" * 40 + "=1", "needs the form"),
    ],
)
def test_override_refusals_name_the_option(tmp_path: Path, override: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        document(tmp_path, "a: {b: 1}").override(override)
    assert fragment in str(caught.value)
    assert str(caught.value).startswith(f"--set {override}")
