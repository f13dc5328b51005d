"""Drawing until a filter is content: the first that passes, whatever the batches; counts that add up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sweeper.sieve import Verdict, sentence, sift

SCORES = {  # by image, then by attempt; 5 passes
    0: (9, 9, 9, 9),
    1: (1, 2, 6, 9),
    2: (3, 4, 1, 4),
    3: (1, 8, 0, 0),
    4: (0, 0, 0, 5),
}


class Drawing:
    """Pictures that say which they are, and how many were drawn at once."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def draw(self, numbers: Sequence[int], attempts: Sequence[int]) -> list[bytes]:
        self.calls.append(len(numbers))
        return [f"{number}/{attempt}".encode() for number, attempt in zip(numbers, attempts, strict=True)]

    def judge(self, pictures: Sequence[bytes], numbers: Sequence[int]) -> list[float]:
        named = [picture.decode().split("/") for picture in pictures]
        assert [int(number) for number, _ in named] == list(numbers)
        return [SCORES[int(number)][int(attempt)] for number, attempt in named]


def sifted(batch_size: int, max_attempts: int = 4) -> tuple[list[Verdict], list[int]]:
    drawing = Drawing()
    found = sift(len(SCORES), drawing.draw, drawing.judge, least=5, max_attempts=max_attempts, batch_size=batch_size)
    return found, drawing.calls


EXPECTED = [
    Verdict(b"0/0", 9, 0, 0, True),
    Verdict(b"1/2", 6, 2, 2, True),
    Verdict(b"2/1", 4, 1, 3, False),  # the best, and of equals the first
    Verdict(b"3/1", 8, 1, 1, True),
    Verdict(b"4/3", 5, 3, 3, True),
]


@pytest.mark.parametrize(
    ("batch_size", "calls"), [(1, [5, 4, 3, 2]), (5, [5, 4, 3, 2]), (8, [5, 8, 2]), (16, [15, 2]), (64, [20])]
)
def test_what_is_kept_does_not_depend_on_the_batch_which_is_filled(batch_size: int, calls: list[int]) -> None:
    assert sifted(batch_size) == (EXPECTED, calls)


def test_the_last_attempt_ends_it() -> None:
    found, calls = sifted(1, max_attempts=2)
    assert calls == [5, 4]
    assert [(verdict.picture, verdict.accepted) for verdict in found] == [
        (b"0/0", True), (b"1/1", False), (b"2/1", False), (b"3/1", True), (b"4/0", False)
    ]  # fmt: skip
    assert [verdict.rejects for verdict in sifted(64, max_attempts=1)[0]] == [0] * 5


def test_the_sentence_adds_up_the_ranges_of_a_source() -> None:
    one = {"kind": "agreement", "kept": 900, "rejected": 90, "exhausted": 0}
    assert sentence([None]) == ""
    assert sentence([one]) == "agreement kept 900 images and rejected 90"
    assert sentence([one, {**one, "kept": 100, "exhausted": 2}]) == (
        "agreement kept 1,000 images and rejected 180; 2 more are the best of attempts that all failed"
    )
