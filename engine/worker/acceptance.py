"""Accepts the longest prefix of a row's drafts that equals the target's own choices.

Knows a row's drafts and the tokens chosen after them, not how either came to be.
"""

from collections.abc import Sequence

from engine.plan import RowResult
from engine.request import LOOKED_UP, ExitRecord
from engine.worker.row import Alternate, Draft, Row

NO_CHOICE = -1  # stands for a token that could not be chosen


def num_accepted(drafts: Sequence[int], targets: Sequence[int]) -> int:
    """Return the length of the longest prefix of `drafts` that equals the target's choices at the
    same positions.

    Args:
        drafts: K token ids.
        targets: K + 1 token ids; target i was chosen given the drafts before i, so it counts only
            if they are accepted.

    Source: accept iff equal under shared noise, Daliri et al. 2024, arXiv 2408.07978.
    """
    assert len(targets) == len(drafts) + 1, "one target per draft and a bonus token"
    for index, draft in enumerate(drafts):
        if draft != targets[index]:
            return index
    return len(drafts)


class Acceptance:
    """Decides on the drafts of one row at a time."""

    def __init__(self, exit_layers: Sequence[int], *, verifies: bool = True) -> None:
        """
        Args:
            exit_layers: The layer of each exit index.
            verifies: False: every draft is accepted, right or wrong (benchmarks).
        """
        self._exit_layers = exit_layers
        self._verifies = verifies

    def accept(self, row: Row, targets: Sequence[int]) -> RowResult:
        """Return a row's accepted drafts and the target's own token; if that token is an alternate,
        one more token follows.

        If no token can be chosen after an accepted one, the row's tokens end there. Whether the row
        needs a further token is found out in the next step, as without drafts.

        Args:
            targets: The token chosen after each pending one, in the order of `Row.sample_points`;
                -1 where there is no choice.

        Returns:
            The tokens; the only one is -1 if there is no choice after the newest known token.
        """
        sequence_id = row.state.sequence_id
        if not targets:
            return RowResult(sequence_id, [])
        if len(targets) == 1:  # a short cut: for many rows on a GPU the rest takes noticeable time
            return RowResult(sequence_id, [targets[0]])
        ids = row.draft_ids
        accepted = num_accepted(ids, targets[: len(ids) + 1]) if self._verifies else len(ids)
        if targets[accepted] == NO_CHOICE and accepted > 0:
            accepted -= 1  # the last accepted draft becomes the target's own token
        token_ids = [*ids[:accepted], targets[accepted]]
        row.taken = row.alternate(accepted, targets[accepted])
        if row.taken is not None:
            following = targets[row.sources(accepted + 2)[-1]]
            if following == NO_CHOICE:
                row.taken = None
            else:
                token_ids.append(following)
        drafts = tuple(self._records(row, accepted))
        return RowResult(sequence_id=sequence_id, token_ids=token_ids, drafts=drafts)

    def _records(self, row: Row, accepted: int) -> list[ExitRecord]:
        """Return what happened to a row's drafts and alternates, accepted ones first."""
        drafts = [
            self._record(draft, place, accepted=place < accepted)
            for place, draft in enumerate(row.drafts)
        ]
        if not row.alternates:
            return drafts
        taken = [self._record(row.taken, accepted, accepted=True)] if row.taken is not None else []
        others = [
            self._record(alternate, alternate.place, accepted=False)
            for alternate in row.alternates
            if alternate is not row.taken
        ]
        return [*drafts[:accepted], *taken, *drafts[accepted:], *others]

    def _record(self, draft: Draft | Alternate, place: int, *, accepted: bool) -> ExitRecord:
        index = draft.exit_index
        exit_layer = LOOKED_UP if index is None else self._exit_layers[index]
        return ExitRecord(draft.token_id, exit_layer, draft.confidence, accepted, place)
