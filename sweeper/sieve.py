"""Draws images until each one passes a filter, or its attempts are used up.

Attempts of one image are judged in their order and the first that passes is kept, so that what is kept does not depend
on how the work is sharded. A generator's batch is padded to a fixed size anyway: where few images are left to draw,
their next attempts fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Draw = Callable[[Sequence[int], Sequence[int]], list[bytes]]  # of images by number, at their attempts
Judge = Callable[[Sequence[bytes], Sequence[int]], Sequence[float]]  # scores of pictures of images by number


@dataclass
class Verdict:
    """What became of one image.

    Attributes:
        attempt: which one was kept, from 0.
        rejects: pictures that were judged before the decision and thrown away.
        accepted: False where no attempt passed, and the one with the highest score was kept.
    """

    picture: bytes = b""
    score: float = -np.inf
    attempt: int = 0
    rejects: int = -1
    accepted: bool = False

    def hear(self, picture: bytes, score: float, attempt: int, least: float) -> None:
        """Judge one more attempt, unless an earlier one passed."""
        if self.accepted:
            return
        self.rejects += 1
        self.accepted = score >= least
        if self.accepted or score > self.score or not self.picture:
            self.picture, self.score, self.attempt = picture, score, attempt


def sift(count: int, draw: Draw, judge: Judge, *, least: float, max_attempts: int, batch_size: int) -> list[Verdict]:
    """One verdict for each of `count` images.

    Args:
        least: the score with which a picture passes.
        batch_size: pictures that the generator draws at once.
    """
    verdicts = [Verdict() for _ in range(count)]
    begin = 0
    while begin < max_attempts and (left := [i for i, verdict in enumerate(verdicts) if not verdict.accepted]):
        room = -(-len(left) // batch_size) * batch_size
        end = min(max_attempts, begin + room // len(left))
        pairs = [(number, attempt) for number in left for attempt in range(begin, end)]
        numbers, attempts = [number for number, _ in pairs], [attempt for _, attempt in pairs]
        pictures = draw(numbers, attempts)
        for (number, attempt), picture, score in zip(pairs, pictures, judge(pictures, numbers), strict=True):
            verdicts[number].hear(picture, float(score), attempt, least)
        begin = end
    return verdicts


def sentence(counts: Iterable[Mapping[str, Any] | None]) -> str:
    """What the filters of a source's artifacts did (`meta["filter"]`); empty where there was none."""
    found = [count for count in counts if count]
    if not found:
        return ""
    kept, rejected, exhausted = (sum(count[name] for count in found) for name in ("kept", "rejected", "exhausted"))
    told = f"{found[0]['kind']} kept {kept:,} images and rejected {rejected:,}"
    return told + (f"; {exhausted:,} more are the best of attempts that all failed" if exhausted else "")
