"""The accepted drafts are the longest prefix that equals the target's choices."""

import pytest

from engine.worker.acceptance import num_accepted


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
