"""What a student takes for what, counted by hand."""

from __future__ import annotations

from typing import Any

from run_samples import NASTY, confusion_records

from sweeper import mistakes


def record(truth: str, taken: str, images: int, rank: int = 1) -> dict[str, Any]:
    return {"rank": rank, "model": "0", "truth": truth, "taken_for": taken, "images": images}


def test_the_matrix_counts_rows_by_what_images_show() -> None:
    found = mistakes.matrix(confusion_records())
    assert found.names == ("cat", NASTY, "dog")
    assert found.cells == (
        ("cat", ((20, 1.0), (0, 0.0), (0, 0.0)), 0),
        (NASTY, ((0, 0.0), (18, 0.9), (2, 0.1)), 0),
        ("dog", ((4, 0.2), (0, 0.0), (16, 0.8)), 0),
    )


def test_the_worst_class_comes_first_with_what_it_is_taken_for() -> None:
    assert mistakes.worst_classes(confusion_records()).rows == (
        ("dog", "80.0%", "20", "cat (4)"),
        (NASTY, "90.0%", "20", "dog (2)"),
        ("cat", "100.0%", "20", "-"),
    )
    assert mistakes.worst_pairs(confusion_records()).rows == (("dog", "cat", "4"), (NASTY, "dog", "2"))


def test_only_the_first_row_of_the_table_is_the_chosen_student() -> None:
    records = [record("a", "a", 3, rank=2), record("a", "b", 1), record("b", "b", 2)]
    assert mistakes.chosen(records) == records[1:]
    assert mistakes.chosen([]) == []


def test_of_many_classes_the_worst_are_shown_and_the_others_counted() -> None:
    names = [f"c{number:03}" for number in range(100)]
    records = [record(name, name, 10) for name in names]
    records += [record("c050", "c051", 5), record("c051", "c099", 7), record("c050", "c000", 1)]
    found = mistakes.matrix(records)
    assert len(found.names) == mistakes.MAX_CLASSES
    assert found.num_classes == 100
    assert {"c050", "c051"} <= set(found.names)
    (row,) = [row for row in found.cells if row[0] == "c051"]
    assert sum(count for count, _ in row[1]) + row[2] == 17
    table = mistakes.worst_classes(records)
    assert [line[0] for line in table.rows[:2]] == ["c051", "c050"]
    assert table.caption == f"The worst {mistakes.MAX_WORST} of 100 classes."


def test_a_class_that_the_split_lacks_can_still_be_mistaken_for() -> None:
    found = mistakes.matrix([record("a", "b", 1)])
    assert found.names == ("a", "b")
    assert found.cells[1] == ("b", ((0, 0.0), (0, 0.0)), 0)
