"""Canonical bytes: equal meaning gives equal bytes in every process; what has none is refused with its path."""

from __future__ import annotations

import enum
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sweeper.fingerprint import canonical_json, file_sha256, fingerprint, folder_sha256
from sweeper.registry import Settings


def test_bytes_are_sorted_compact_utf8() -> None:
    assert canonical_json({"b": [1, 1.0, True, None], "a": "é"}) == '{"a":"é","b":[1,1.0,true,null]}'.encode()


def test_order_of_keys_and_tuple_or_list_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (1, "1"), (0.1, 0.1 + 2**-56), ([], {}), (None, "null")]
)
def test_different_values_differ(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_floats_come_back_exactly() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**64, size=2000, dtype=np.uint64).view(np.float64)
    values = [float(value) for value in bits if np.isfinite(value)]
    assert json.loads(canonical_json(values)) == values


def test_another_process_with_another_hash_seed_agrees() -> None:
    value = {"z": {"k1": 0.1, "k2": ["x", 3]}, "a": "ü"}
    code = f"from sweeper.fingerprint import fingerprint; print(fingerprint({value!r}))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == fingerprint(value)


def test_pinned_so_that_stores_stay_valid() -> None:
    expected = hashlib.sha256(b'{"epochs":3,"lr":1e-05,"name":"a"}').hexdigest()
    assert fingerprint({"name": "a", "lr": 1e-5, "epochs": 3}) == expected


class Color(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, float("nan")]}, "value.a[1]"),
        ({"a": float("inf")}, "value.a"),
        ({"a": {"b": {1, 2}}}, "value.a.b"),
        ([b"x"], "value[0]"),
        ({"a": object()}, "value.a"),
        ({"a": np.float64(1)}, "value.a"),
        ({"a": np.int64(1)}, "value.a"),
        ({"a": Color.RED}, "value.a"),
        ({"a": pathlib.Path("x")}, "value.a"),
        ({"a": {1: 2}}, "value.a"),
        ({"a": "\ud800"}, "value.a"),
        ({"\ud800": 1}, "value"),
    ],
)
def test_what_has_no_stable_bytes_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(TypeError) as caught:
        canonical_json(value)
    assert str(caught.value).startswith(f"{path}: ")


class Inner(Settings):
    weights: str


class Outer(Settings):
    teacher: Settings
    others: dict[str, Settings]
    sizes: tuple[int, ...]


def test_models_are_their_fields() -> None:
    assert canonical_json(Inner(weights="x")) == b'{"weights":"x"}'


def test_fields_of_a_subclass_in_a_field_of_its_base_class_count() -> None:
    def make(name: str) -> Outer:
        return Outer(teacher=Inner(weights=name), others={"a": Inner(weights=name)}, sizes=(1, 2))

    assert fingerprint(make("x")) != fingerprint(make("y"))
    nested: dict[str, Any] = {"teacher": {"weights": "x"}, "others": {"a": {"weights": "x"}}, "sizes": [1, 2]}
    assert fingerprint({"config": make("x")}) == fingerprint({"config": nested})


def test_file_and_folder(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "one"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a" * 3_000_000)
    (folder / "deep" / "b.txt").write_bytes(b"b")
    assert file_sha256(folder / "a.txt") == hashlib.sha256(b"a" * 3_000_000).hexdigest()
    before = folder_sha256(folder)
    copy = shutil.copytree(folder, tmp_path / "two")
    (copy / "empty").mkdir()
    assert folder_sha256(str(copy)) == before

    (copy / "deep" / "b.txt").rename(copy / "deep" / "c.txt")
    assert folder_sha256(copy) != before
    (copy / "deep" / "c.txt").rename(copy / "deep" / "b.txt")
    (copy / "deep" / "b.txt").write_bytes(b"c")
    assert folder_sha256(copy) != before
    with pytest.raises(NotADirectoryError):
        folder_sha256(folder / "a.txt")
