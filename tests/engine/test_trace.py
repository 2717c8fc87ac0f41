"""The trace says where every emitted token came from."""

from engine.plan import RowResult
from engine.request import ExitRecord
from engine.trace import token_traces


def test_accepted_drafts_by_exit_then_the_targets_own_token_with_what_it_replaced() -> None:
    accepted = ExitRecord(token_id=5, exit_layer=2, confidence=0.9, accepted=True)
    wrong = ExitRecord(token_id=6, exit_layer=1, confidence=0.4, accepted=False, place=1)
    after = ExitRecord(token_id=7, exit_layer=2, confidence=0.8, accepted=False, place=2)
    other = ExitRecord(token_id=8, exit_layer=2, confidence=0.3, accepted=False, place=0)
    result = RowResult(sequence_id=0, token_ids=[5, 9], drafts=(accepted, wrong, after, other))
    first, last = token_traces(result, 2, num_layers=8)
    assert (first.token_id, first.exit_layer, first.confidence, first.rejected) == (5, 2, 0.9, ())
    assert (last.token_id, last.exit_layer, last.confidence) == (9, 8, None)
    assert last.rejected == (wrong, after)
    assert token_traces(result, 1, num_layers=8) == [first]


def test_a_plain_step() -> None:
    (only,) = token_traces(RowResult(sequence_id=0, token_ids=[4]), 1, num_layers=8)
    assert (only.exit_layer, only.confidence, only.rejected) == (8, None, ())
