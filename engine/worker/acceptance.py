"""Which drafts stand: the longest prefix that equals the target's own choices."""

from collections.abc import Sequence


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
