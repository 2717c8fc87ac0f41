"""Which drafts stand: the longest prefix that equals the target's own choices, and an alternate in
the place behind it that does.
"""

from collections.abc import Sequence

from engine.worker.row import Alternate


def num_accepted(drafts: Sequence[int], targets: Sequence[int]) -> int:
    """Length of the longest prefix of `drafts` that equals the target's choices at the same
    positions.

    Args:
        drafts: K token ids.
        targets: K + 1 token ids; target i was chosen given the drafts before i, so it stands only
            if they do.

    Source: accept iff equal under shared noise, Daliri et al. 2024, arXiv 2408.07978.
    """
    assert len(targets) == len(drafts) + 1, "one target per draft and a bonus token"
    for index, draft in enumerate(drafts):
        if draft != targets[index]:
            return index
    return len(drafts)


def chosen_alternate(
    alternates: Sequence[Alternate], accepted: int, target: int
) -> Alternate | None:
    """The alternate that the target chose in the place behind so many accepted drafts."""
    return next((a for a in alternates if a.place == accepted and a.token_id == target), None)
