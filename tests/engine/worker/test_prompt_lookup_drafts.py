"""Runs of look-up drafts end where they are hardly ever accepted, or where the sequence ends."""

from types import SimpleNamespace

import pytest
from tiny_model import sequence_start

from engine.plan import RowPlan
from engine.worker.chances import Chances
from engine.worker.prompt_lookup_drafts import PromptLookupDrafts
from engine.worker.row import Draft, Row
from engine.worker.sequence_state import SequenceState
from engine.worker.token_bits import token_bits

pytestmark = pytest.mark.torch

SEEN_ONCE = [7, 8, 9, 10, 11, 12, 13, 14, 7]


def row_of(token_ids: list[int], **options: object) -> Row:
    state = SequenceState(sequence_start(0, token_ids, **options))
    plan = RowPlan(0, len(token_ids) - 1, 1, [0], max_draft_tokens=6, is_decoding=True)
    return Row(plan, state)


def drafts_of(row: Row) -> list[Draft]:
    return PromptLookupDrafts(Chances([], {})).after_pending(row)


def drafts_after(token_ids: list[int], **options: object) -> list[Draft]:
    return drafts_of(row_of(token_ids, **options))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_run_ends_with_the_first_unlikely_draft(temperature: float) -> None:
    *likely, last = drafts_after(SEEN_ONCE, temperature=temperature)
    assert len(likely) < 5
    assert all(draft.survival >= 0.05 for draft in likely)
    assert last.survival < 0.05


def test_a_run_ends_with_the_end_of_the_sequence() -> None:
    found = drafts_after([7, 8, 9, 10] * 4, stop_token_ids=[8])
    assert [draft.token_id for draft in found] == [7, 8]


def test_a_run_goes_on_from_the_drafts_before_it() -> None:
    row = row_of([7, 8, 9, 10] * 4)
    row.drafts = [Draft(7, 0, 0.5, 0.5)]
    found = drafts_of(row)
    assert [draft.token_id for draft in found[:3]] == [8, 9, 10]
    assert [guess.path for guess in row.guesses[:3]] == [(7,), (7, 8), (7, 8, 9)]
    assert found[0].survival == pytest.approx(0.5 * found[0].confidence)


def test_a_run_ends_before_what_a_structure_forbids() -> None:
    row = row_of([7, 8, 9, 10] * 4)
    allowed = token_bits([7, 8], 97)
    row.state.structure = SimpleNamespace(vocab_size=97, allowed=lambda *_, **__: allowed)
    assert [draft.token_id for draft in drafts_of(row)] == [7, 8]


def test_noise_is_that_of_the_position_where_a_token_would_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "engine.worker.prompt_lookup_drafts.gumbel_of",
        lambda key, token_id: asked.append((key, token_id)) or 9.0,
    )
    row = row_of([5, 1, 9, 5, 2, 8, 5], temperature=1.0)
    found, key_of = drafts_of(row), row.state.noise_key
    places = enumerate([draft.token_id for draft in found], start=7)
    expected = [(key_of(place), token_id) for place, token_id in places]
    assert len(found) > 1
    assert asked == [(key_of(7), 2), (key_of(7), 1), *expected], "first to choose what to follow"
