"""How a class's name is said in a prompt, and what a message shows of a stranger's text."""

from __future__ import annotations

import pytest

from sweeper.wording import one_line, spoken


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("airport_inside", "airport inside"),
        ("AnnualCrop", "Annual Crop"),
        ("HighwayOrRoad", "Highway Or Road"),
        ("a__b  c", "a b c"),
        ("057.dolphin-101", "dolphin-101"),
    ],
)
def test_a_name_is_said_in_words(name: str, words: str) -> None:
    assert spoken(name) == words
    assert spoken(words) == words


NO_COMPOUNDS = [
    "cat",
    "MD-11",
    "DHC-8-300",
    "iPhone",
    "McLaren",
    "LaTeX",
    "ak47",
    "n01440764",
    "2.0",
    "007.",
    "日本語",
    "_",
]


@pytest.mark.parametrize("name", [*NO_COMPOUNDS, "3.5 inch", "PT Cruiser", ""])
def test_what_is_no_compound_stays_as_it_is(name: str) -> None:
    assert spoken(name) == name


def test_nothing_unprintable_is_shown_and_no_end_without_a_sign() -> None:
    assert one_line("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert one_line("é日") == "é日"
    assert one_line("x" * 600, 10) == "xxxxxxx..."
