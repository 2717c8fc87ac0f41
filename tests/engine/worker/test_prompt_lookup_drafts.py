"""Runs of look-up drafts end where they are hardly ever accepted, or where the sequence ends."""

import pytest
from tiny_model import sequence_start

from engine.plan import RowPlan
from engine.worker.chances import Chances
from engine.worker.prompt_lookup_drafts import PromptLookupDrafts
from engine.worker.row import Draft, Row
from engine.worker.sequence_state import SequenceState

pytestmark = pytest.mark.torch

SEEN_ONCE = [7, 8, 9, 10, 11, 12, 13, 14, 7]


def drafts_after(token_ids: list[int], **options: object) -> list[Draft]:
    state = SequenceState(sequence_start(0, token_ids, **options))
    plan = RowPlan(0, len(token_ids) - 1, 1, [0], max_draft_tokens=6, is_decoding=True)
    return PromptLookupDrafts(Chances([], {})).after_pending(Row(plan, state))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_run_ends_with_the_first_unlikely_draft(temperature: float) -> None:
    *likely, last = drafts_after(SEEN_ONCE, temperature=temperature)
    assert len(likely) < 5
    assert all(draft.survival >= 0.05 for draft in likely)
    assert last.survival < 0.05


def test_a_run_ends_with_the_end_of_the_sequence() -> None:
    found = drafts_after([7, 8, 9, 10] * 4, stop_token_ids=[8])
    assert [draft.token_id for draft in found] == [7, 8]
