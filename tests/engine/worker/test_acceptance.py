"""The accepted drafts are the longest prefix that equals the target's choices."""

import pytest

from engine.worker.acceptance import chosen_alternate, num_accepted
from engine.worker.row import Alternate

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("drafts", "targets", "expected"),
    [
        ([], [7], 0),
        ([7], [7, 8], 1),
        ([6], [7, 8], 0),
        ([7, 8, 9], [7, 8, 9, 1], 3),
        ([7, 5, 9], [7, 8, 9, 1], 1),  # a match after a mismatch does not count
    ],
)
def test_longest_prefix(drafts: list[int], targets: list[int], expected: int) -> None:
    assert num_accepted(drafts, targets) == expected


def test_wrong_lengths_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        num_accepted([1, 2], [1, 2])


def test_an_alternate_is_chosen_in_its_own_place_only() -> None:
    alternates = [Alternate(7, 0, 0, 0.5, 0.5, spare=1), Alternate(8, 1, 0, 0.5, 0.5, spare=0)]
    assert chosen_alternate(alternates, 0, 7) is alternates[0]
    assert chosen_alternate(alternates, 1, 8) is alternates[1]
    assert chosen_alternate(alternates, 1, 7) is None
    assert chosen_alternate(alternates, 2, 8) is None
