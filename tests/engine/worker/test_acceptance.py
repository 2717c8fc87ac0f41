"""The accepted drafts are the longest prefix that equals the target's choices."""

import pytest
from tiny_model import sequence_start

from engine.plan import RowPlan
from engine.worker.acceptance import NO_CHOICE, Acceptance, num_accepted
from engine.worker.row import Alternate, Draft, Row
from engine.worker.sequence_state import SequenceState


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


def row(drafts: list[int], alternate: tuple[int, int] | None = None) -> Row:
    """A decoding row with these drafts, and perhaps an alternate (its place, its token)."""
    plan = RowPlan(0, 2, 1, [0], max_draft_tokens=4, is_decoding=True)
    made = Row(plan, SequenceState(sequence_start(0, [5, 9, 2])))
    made.drafts = [Draft(token_id, 0, 0.5, 0.5) for token_id in drafts]
    if alternate is not None:
        place, token_id = alternate
        made.alternates = [Alternate(token_id, place, 0, 0.5, 0.5, spare=0)]
    return made


@pytest.mark.parametrize(
    ("drafts", "alternate", "targets", "token_ids"),
    [
        ([7, 8], None, [7, 8, 9], [7, 8, 9]),
        ([7, 8], None, [NO_CHOICE, 8, 9], [NO_CHOICE]),
        ([7, 8], None, [7, NO_CHOICE, 9], [7]),
        ([7, 8], None, [7, 8, NO_CHOICE], [7, 8]),
        ([7, 8], None, [7, 6, NO_CHOICE], [7, 6]),
        ([7, 8], (1, 6), [7, 6, 3, 4], [7, 6, 4]),
        ([7, 8], (1, 6), [7, 6, 3, NO_CHOICE], [7, 6]),
        ([7, 8], (1, 6), [7, NO_CHOICE, 3, 4], [7]),
        ([7, 8], (0, 6), [6, 8, 3, NO_CHOICE], [6]),
    ],
)
def test_tokens_end_before_the_first_that_cannot_be_chosen(
    drafts: list[int],
    alternate: tuple[int, int] | None,
    targets: list[int],
    token_ids: list[int],
) -> None:
    mine = row(drafts, alternate)
    result = Acceptance([3]).accept(mine, targets)
    assert result.token_ids == token_ids
    assert (mine.taken is not None) == (token_ids[-1] == 4), "what follows it would be lost"
    assert sum(draft.accepted for draft in result.drafts) == len(token_ids) - 1
