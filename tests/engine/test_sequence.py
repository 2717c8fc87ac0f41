"""How a sequence commits a step's tokens, and where its output ends."""

import pytest
from fake_worker import EOS_ID, make_request

from engine.plan import RowResult
from engine.policy_reason import PolicyReport
from engine.request import ExitRecord, FinishReason, Structure
from engine.sequence import OUTGROWN, Sequence, SequenceStatus

JSON = Structure(kind="json_object")


def sequence_of(num_prompt: int = 4, max_len: int = 64, **sampling: object) -> Sequence:
    return Sequence(0, make_request(0, num_prompt, **sampling), (EOS_ID,), max_len)


def result(*token_ids: int, drafts: tuple[ExitRecord, ...] = ()) -> RowResult:
    return RowResult(sequence_id=0, token_ids=list(token_ids), drafts=tuple(drafts))


def draft(layer: int, accepted: bool) -> ExitRecord:
    return ExitRecord(token_id=5, exit_layer=layer, confidence=0.5, accepted=accepted)


def test_prefill_in_chunks_moves_the_cursor_and_makes_no_output() -> None:
    sequence = sequence_of(num_prompt=10)
    assert sequence.commit(6, result()) == 0
    assert (sequence.num_computed_tokens, sequence.num_output_tokens) == (6, 0)
    assert sequence.commit(4, result(7)) == 1
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (10, 11)


def test_between_steps_only_the_newest_token_is_uncomputed() -> None:
    sequence = sequence_of(num_prompt=4)
    sequence.commit(4, result(7))
    sequence.commit(1, result(8, 9, 10))
    assert sequence.num_computed_tokens == sequence.num_tokens - 1 == 7


@pytest.mark.parametrize(
    ("sampling", "tokens", "num_kept", "reason", "stop_reason"),
    [
        ({}, (5, EOS_ID, 6), 2, FinishReason.STOP, None),
        ({"ignore_eos": True}, (5, EOS_ID, 6), 3, None, None),
        ({"stop_token_ids": (6,)}, (5, 6, 7), 2, FinishReason.STOP, 6),
        ({"stop_token_ids": (EOS_ID,), "ignore_eos": True}, (EOS_ID,), 1, FinishReason.STOP, 0),
        ({"stop_token_ids": (6,), "min_tokens": 3}, (6, 6, 6), 3, FinishReason.STOP, 6),
        # Nothing may follow the end of a structure.
        ({"structure": JSON, "min_tokens": 3}, (5, EOS_ID), 2, FinishReason.STOP, None),
        ({"structure": JSON, "ignore_eos": True}, (5, EOS_ID, 6), 2, FinishReason.STOP, None),
        ({"max_tokens": 2}, (5, 6, 7), 2, FinishReason.LENGTH, None),
        ({"max_tokens": 2}, (5, EOS_ID, 7), 2, FinishReason.STOP, None),
    ],
)
def test_where_the_output_ends(
    sampling: dict, tokens: tuple[int, ...], num_kept: int, reason: object, stop_reason: object
) -> None:
    sequence = sequence_of(**sampling)
    assert sequence.commit(4, result(*tokens)) == num_kept
    assert sequence.num_output_tokens == num_kept
    assert (sequence.finish_reason, sequence.stop_reason) == (reason, stop_reason)
    assert sequence.is_finished == (reason is not None)


def test_a_cache_that_has_shrunk_ends_the_output_by_name() -> None:
    sequence = sequence_of(num_prompt=4, max_tokens=20)
    assert sequence.adapt(7)
    assert sequence.commit(4, result(5, 6, 7, 8)) == 3
    assert (sequence.finish_reason, sequence.error) == (FinishReason.ERROR, OUTGROWN)


@pytest.mark.parametrize(
    ("max_len", "max_tokens", "can_go_on"),
    [(7, 20, True), (6, 20, False), (6, 0, True)],  # it knows six tokens
)
def test_what_has_no_room_for_another_token_cannot_go_on_unless_it_wants_none(
    max_len: int, max_tokens: int, can_go_on: bool
) -> None:
    assert sequence_of(num_prompt=6, max_tokens=max_tokens).adapt(max_len) == can_go_on


def test_an_error_ends_it_with_its_message() -> None:
    sequence = sequence_of()
    failed = RowResult(sequence_id=0, token_ids=[], error="not numbers")
    assert sequence.commit(4, failed) == 0
    assert (sequence.finish_reason, sequence.error) == (FinishReason.ERROR, "not numbers")


def test_a_preempted_sequence_starts_again_with_all_it_knows() -> None:
    sequence = sequence_of(num_prompt=4)
    sequence.commit(4, result(7, 8))
    sequence.preempt()
    assert (sequence.status, sequence.num_computed_tokens) == (SequenceStatus.WAITING, 0)
    start = sequence.start()
    assert start.token_ids == [*sequence.request.prompt_token_ids, 7, 8]
    assert start.num_prompt_tokens == 4


def test_a_prompt_that_has_been_pooled_may_be_read_from_the_cache() -> None:
    sequence = Sequence(0, make_request(0, 4, pooling="mean"), (EOS_ID,), 64)
    assert sequence.needs_every_position
    sequence.commit(4, RowResult(sequence_id=0, token_ids=[7], embedding=[0.5]))
    assert not sequence.needs_every_position


def test_the_worker_masks_every_token_that_would_end_it() -> None:
    sequence = sequence_of(stop_token_ids=(9, 6), min_tokens=2)
    assert sequence.start().stop_token_ids == [EOS_ID, 6, 9]
    assert sequence_of(stop_token_ids=(9,), ignore_eos=True).start().stop_token_ids == [9]


def test_figures_count_steps_layers_and_prefixes() -> None:
    sequence = sequence_of()
    sequence.commit(4, result(5))
    sequence.commit(1, result(5, 5, 9, drafts=(draft(1, True), draft(2, True), draft(1, False))))
    sequence.commit(1, result(7, drafts=(draft(1, False),)))
    figures = sequence.figures(PolicyReport())
    assert (figures.num_steps, figures.num_draft_tokens, figures.num_accepted_tokens) == (2, 4, 2)
    assert figures.acceptance_histogram == (1, 0, 1)
    assert figures.accepted_by_layer == {1: 1, 2: 1}
    assert figures.drafted_by_layer == {1: 3, 2: 1}
    assert figures.mean_acceptance_length == 2.0
