"""What becomes of a row's pending tokens when drafts are dropped."""

import torch
from tiny_model import sequence_start

from engine.plan import RowPlan
from engine.worker.forward_batch import TokenRef
from engine.worker.row import Alternate, Draft, Row
from engine.worker.sequence_state import SequenceState


def test_dropped_drafts_take_their_alternates_and_estimates_along() -> None:
    plan = RowPlan(0, 2, 1, [0], max_draft_tokens=4, is_decoding=True)
    row = Row(plan, SequenceState(sequence_start(0, [5, 9, 2])))
    row.drafts = [Draft(token_id, 0, 0.5, 0.5) for token_id in (7, 8, 6)]
    row.alternates = [Alternate(4, place, 0, 0.5, 0.5, spare=place) for place in range(3)]
    row.estimates = [torch.full((1,), place) for place in range(5)]
    assert row.num_pending == len(row.pending_refs(0)) == len(row.sample_points()) == 7
    assert row.take_waiting() == [2, 7, 8, 6]
    assert len(row.take_aside()) == 3
    row.cut(1)
    assert row.draft_ids == [7]
    assert [alternate.place for alternate in row.alternates] == [0]
    # Of the tokens before the known one, before the draft, and before what may follow it.
    assert [estimate.item() for estimate in row.estimates] == [0, 1, 2]
    assert row.has(TokenRef(0, 3))
    assert not row.has(TokenRef(0, 4))
    assert row.has(TokenRef(0, 3, spare=0))
    assert not row.has(TokenRef(0, 4, spare=1))
    assert not row.is_waiting
    row.alternates.append(Alternate(3, 1, 0, 0.5, 0.5, spare=1))
    assert row.is_waiting
    assert [alternate.token_id for alternate in row.take_aside()] == [3]
