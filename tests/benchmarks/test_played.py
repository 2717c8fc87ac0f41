"""Played with an H100's times, trying what cannot pay costs next to nothing."""

import pytest

from benchmarks.played import play

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("rows", "look_share"), [(64, 1.0), (64, 0.2), (16, 1.0), (1, 1.0)])
def test_early_exits_that_cannot_pay_lose_less_than_two_percent(
    rows: int, look_share: float
) -> None:
    outcome = play(rows, 128, look_share)

    assert 0.98 <= outcome.speed <= 1.0001  # of a clock that no machine disturbs
    assert outcome.looks < 0.02
    assert outcome == play(rows, 128, look_share)
