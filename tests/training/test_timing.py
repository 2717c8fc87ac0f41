"""Which of the compared sets of exits is preferred."""

from dataclasses import dataclass

import pytest

from training.timing import best_first

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Timed:
    exit_layers: list[int]
    measured: float


def test_a_further_exit_has_to_bring_more_than_other_prompts_may_turn_round() -> None:
    one, two, slow = Timed([0], 1.667), Timed([0, 3], 1.696), Timed([3], 1.618)
    assert best_first([two, slow, one]) == [one, two, slow]


def test_clearly_faster_exits_are_taken_however_many_they_are() -> None:
    one, two, other = Timed([0], 1.5), Timed([0, 3], 1.7), Timed([3, 5], 1.69)
    assert best_first([one, other, two]) == [two, other, one]
