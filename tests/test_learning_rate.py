"""The schedules against closed forms."""

from __future__ import annotations

import math

import pytest

from sweeper.learning_rate import Schedule, learning_rate_factor


class TestLearningRate:
    def test_without_warmup_it_is_half_a_cosine(self) -> None:
        found = [learning_rate_factor(step, 10, 0.0, "cosine") for step in range(10)]
        assert found == pytest.approx([math.cos(math.pi * step / 20) ** 2 for step in range(10)])
        assert found[0] == 1.0

    def test_warmup_is_a_straight_line_that_ends_where_the_cosine_begins(self) -> None:
        found = [learning_rate_factor(step, 20, 0.2, "cosine") for step in range(20)]
        assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert found[4:] == pytest.approx([math.cos(math.pi * step / 32) ** 2 for step in range(16)])

    def test_constant(self) -> None:
        found = [learning_rate_factor(step, 8, 0.25, "constant") for step in range(8)]
        assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])

    @pytest.mark.parametrize("num_steps", [1, 2, 7])
    @pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
    def test_every_step_moves(self, num_steps: int, warmup: float) -> None:
        schedules: tuple[Schedule, ...] = ("cosine", "constant", "wsd")
        for schedule in schedules:
            assert all(0 < learning_rate_factor(s, num_steps, warmup, schedule) <= 1 for s in range(num_steps))

    def test_wsd_stays_until_the_last_fifth_and_ends_near_zero(self) -> None:
        found = [learning_rate_factor(step, 20, 0.1, "wsd") for step in range(20)]
        assert found == pytest.approx([1 / 3, 2 / 3, *[1.0] * 15, 0.75, 0.5, 0.25])

    def test_what_comes_before_the_cooldown_does_not_know_the_end(self) -> None:
        """A training that would go on for longer has the same learning rates until then, warm-up apart."""
        short, long = ([learning_rate_factor(s, n, 0.0, "wsd") for s in range(80)] for n in (100, 1000))
        assert short == long == [1.0] * 80
