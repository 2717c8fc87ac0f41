"""Played with a GPU's times, trying what cannot pay costs next to nothing."""

import pytest

from benchmarks.played import CARDS, Outcome, play

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("card", "rows", "look_share", "right", "dearer"),
    [
        ("H100", 64, 1.0, 0.0, 1.0),
        ("H100", 64, 0.2, 0.0, 1.0),
        ("H100", 16, 1.0, 0.0, 1.0),
        ("H100", 1, 1.0, 0.0, 1.0),
        ("H200", 16, 1.0, 0.0, 3.0),
        ("H200", 16, 1.0, 0.9, 3.0),  # most drafts are right, and still do not pay
        ("H200", 16, 1.0, 0.9, 2.0),
        ("H200", 1, 1.0, 0.9, 2.0),
    ],
)
def test_early_exits_that_cannot_pay_lose_less_than_two_percent(
    card: str, rows: int, look_share: float, right: float, dearer: float
) -> None:
    def played() -> Outcome:
        return play(CARDS[card], rows, look_share=look_share, right=right, dearer=dearer)

    outcome = played()
    assert 0.98 <= outcome.speed <= 1.0001  # of a clock that no machine disturbs
    assert outcome.looks < 0.03
    assert outcome == played()


def test_early_exits_that_do_pay_are_soon_found() -> None:
    assert play(CARDS["H200"], 1, right=0.9).speed > 1.4
    assert play(CARDS["H200"], 16, right=0.9).speed > 1.1
