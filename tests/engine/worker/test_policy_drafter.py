"""Both sources of drafts in real steps: what each drafts, what is screened, what is learned."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from drafting_rows import REPETITIVE, estimate, prompt_of, row_of
from tiny_model import (
    VOCAB,
    StepDriver,
    policy_drafter,
    random_heads,
    sequence_start,
)

from engine.model.decoder import Decoder
from engine.plan import RowResult
from engine.request import LOOKED_UP
from engine.worker.chances import SCREEN, SECOND, Chance, Chances
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.exit_evaluator import Arrival, ExitEvaluator, Opinion
from engine.worker.exit_policy import ExitPolicy
from engine.worker.forward_batch import ForwardBatch
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.row import Alternate, Draft, Row
from engine.worker.sampler import Sampler
from engine.worker.sequence_state import SequenceState
from engine.worker.step_estimate import StepEstimate

pytestmark = pytest.mark.torch


def test_repetition_is_drafted_without_any_head(decoder: Decoder) -> None:
    row, step = row_of(REPETITIVE), estimate()
    policy_drafter(decoder, None).look_up([row], step)
    assert row.draft_ids == [7, 8, 9, 10, 11, 12]
    assert all(draft.exit_index is None for draft in row.drafts)
    survivals = [draft.survival for draft in row.drafts]
    assert survivals == sorted(survivals, reverse=True)
    assert step.num_tokens == 7
    assert step.expected_tokens == pytest.approx(1 + sum(survivals))


@pytest.mark.parametrize(
    "options", [{"lookup": False}, {"early_exit": False}, {"threshold": 0.999}]
)
def test_nothing_is_looked_up_where_a_request_does_not_want_it(
    decoder: Decoder, options: dict[str, object]
) -> None:
    row = row_of(REPETITIVE, **options)
    policy_drafter(decoder, None).look_up([row], estimate())
    assert row.drafts == []


def test_nothing_is_looked_up_after_tokens_that_are_on_their_way(decoder: Decoder) -> None:
    """What was found there has been tried, and may have been dropped at an exit since."""
    drafter = policy_drafter(decoder, None)
    row, fixed = row_of(REPETITIVE), row_of(REPETITIVE, threshold=0.0)
    row.take_waiting()
    fixed.take_waiting()
    drafter.look_up([row, fixed], estimate())
    assert row.drafts == fixed.drafts == []


def test_nothing_is_looked_up_while_the_policy_pauses(decoder: Decoder) -> None:
    drafter = policy_drafter(decoder, None)
    dear = StepEstimate(num_tokens=1, expected_tokens=1.0, seconds=60.0)
    for _ in range(16):
        drafter.begin([row_of(REPETITIVE)], estimate())
        drafter.learn([row_of(REPETITIVE)], [RowResult(sequence_id=0, token_ids=[7])], dear)
    row, fixed = row_of(REPETITIVE), row_of(REPETITIVE, threshold=0.0)
    drafter.look_up([row, fixed], estimate())
    assert row.drafts == row.guesses == []
    assert fixed.drafts


def test_while_nobody_may_draft_a_steps_tokens_are_placed_once(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = policy_drafter(decoder, random_heads(decoder, [2, 4], VOCAB))
    placed: list[int] = []
    tokens = ForwardBatch.tokens
    monkeypatch.setattr(
        ForwardBatch, "tokens", lambda self, refs: (placed.append(len(refs)), tokens(self, refs))[1]
    )
    monkeypatch.setattr(ExitPolicy, "is_drafting", False)
    evaluations: list[int] = []
    monkeypatch.setattr(ExitEvaluator, "opinions", lambda *_: evaluations.append(1))
    starts = [sequence_start(i, [5 + i, 9, 2]) for i in range(3)]
    paused, _ = StepDriver(decoder, 16, drafter).generate(starts, 4)
    assert placed == [9, 3, 3, 3]
    assert evaluations == []
    assert paused == StepDriver(decoder, 16, None).generate(starts, 4)[0]


def test_nothing_follows_an_end_of_sequence(decoder: Decoder) -> None:
    row = row_of(REPETITIVE, stop_token_ids=[9])
    policy_drafter(decoder, None).look_up([row], estimate())
    assert row.draft_ids == [7, 8, 9]
    assert row.num_room == 0


def evaluate(drafter: PolicyDrafter, row: Row, step: StepEstimate, exit_index: int = 0) -> None:
    """Let the row's pending tokens arrive at an exit."""
    row.take_waiting()
    count = len(row.drafts) + 1
    hidden = torch.randn(count, 48, generator=torch.Generator().manual_seed(3))
    drafter.evaluate_exit(exit_index, [Arrival(row, list(range(count)))], hidden, step)


def test_heads_are_asked_about_rows_that_may_draft_and_whose_last_state_is_known(
    decoder: Decoder,
) -> None:
    drafter = policy_drafter(decoder, random_heads(decoder, [1], VOCAB))
    row, barred = row_of([5, 1, 6, 2]), row_of([5, 1, 6, 2], early_exit=False)
    row.estimates = []
    for each in (row, barred):
        evaluate(drafter, each, estimate())
        assert each.drafts == each.guesses == []


@pytest.mark.parametrize(("exit_index", "is_screened"), [(0, True), (1, False)])
def test_what_was_looked_up_is_screened_at_the_first_exit_only(
    decoder: Decoder, exit_index: int, is_screened: bool
) -> None:
    drafter = policy_drafter(decoder, random_heads(decoder, [1, 2], VOCAB))
    row = row_of(REPETITIVE)
    drafter.look_up([row], estimate())
    evaluate(drafter, row, estimate(), exit_index)
    assert any(guess.chance.kind == SCREEN for guess in row.guesses) is is_screened


def test_drafts_that_a_threshold_decides_share_their_way_with_others(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(ExitPolicy, "select", lambda *args: numbers.append(args[-1]) or [])
    drafter = policy_drafter(decoder, random_heads(decoder, [1], VOCAB))
    rows = [row_of([5, 1, 6, 2], threshold=0.0), row_of([5, 1, 6, 2])]
    drafter.begin(rows, StepEstimate(num_tokens=2, expected_tokens=2.0))
    arrivals = [Arrival(row, [place]) for place, row in enumerate(rows)]
    drafter.evaluate_exit(0, arrivals, torch.randn(2, 48), estimate())
    assert numbers == [len(rows[0].drafts)] == [1]


def test_a_head_sure_of_something_else_takes_a_look_ups_place(decoder: Decoder) -> None:
    heads = random_heads(decoder, [1], VOCAB)
    drafter = policy_drafter(decoder, heads)
    row, step = row_of(REPETITIVE), estimate()
    weak = Draft(40, None, 0.01, 0.01)
    row.drafts.append(weak)
    step.num_tokens, step.expected_tokens = 2, 1.01
    evaluate(drafter, row, step)
    assert [draft.exit_index for draft in row.drafts] == [0]
    assert row.draft_ids != [40]
    assert row.num_waiting == 1, "it starts at segment 0"
    assert len(row.estimates) == 2
    assert step.num_tokens == 2
    assert step.expected_tokens == pytest.approx(1 + row.survival)


def test_a_heads_second_best_stands_beside_its_best(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    likely = Chance(0.3, SECOND, is_greedy=True, features=(1.0, 0.0, 0.0))
    monkeypatch.setattr(Chances, "of_second", lambda *_, **__: likely)
    drafter = policy_drafter(decoder, random_heads(decoder, [1], VOCAB))
    row, step = row_of([5, 1, 6, 2]), estimate()
    step.num_spare = 3
    evaluate(drafter, row, step)
    assert [draft.exit_index for draft in row.drafts] == [0]
    (alternate,) = row.alternates
    assert (alternate.place, alternate.exit_index, alternate.spare) == (0, 0, 2)
    assert alternate.token_id != row.draft_ids[0]
    assert step.num_spare == 2
    assert step.num_tokens == 3
    assert step.expected_tokens == pytest.approx(1 + row.survival + alternate.survival)
    assert row.is_waiting
    assert row.take_waiting() == row.draft_ids
    assert row.take_aside() == [alternate]
    assert not row.is_waiting
    guessed = {guess.token_id for guess in row.guesses}
    assert guessed == {row.draft_ids[0], alternate.token_id}


def test_what_a_look_up_does_not_say_stands_beside_it(decoder: Decoder) -> None:
    """The head's best token becomes an alternate if a look-up's draft is likelier."""
    drafter = policy_drafter(decoder, random_heads(decoder, [1], VOCAB))
    row, step = row_of(REPETITIVE), estimate()
    step.num_spare = 1
    row.drafts.append(Draft(40, None, 0.99, 0.99))
    step.num_tokens, step.expected_tokens = 2, 1.99
    evaluate(drafter, row, step)
    assert row.draft_ids[0] == 40
    assert [alternate.place for alternate in row.alternates] == [0]
    assert row.alternates[0].token_id != 40


@pytest.mark.parametrize(("num_spare", "threshold"), [(0, None), (3, 0.0)])
def test_no_alternate_without_room_or_where_a_threshold_decides(
    decoder: Decoder, num_spare: int, threshold: float | None
) -> None:
    drafter = policy_drafter(decoder, random_heads(decoder, [1], VOCAB))
    row, step = row_of([5, 1, 6, 2], threshold=threshold), estimate()
    step.num_spare = num_spare
    evaluate(drafter, row, step)
    assert len(row.drafts) == 1
    assert row.alternates == []


def test_an_alternate_is_known_by_its_place_and_token(decoder: Decoder) -> None:
    row = row_of([5, 1, 6, 2])
    row.alternates += [Alternate(7, 0, 0, 0.5, 0.5, spare=1), Alternate(8, 1, 0, 0.5, 0.5, spare=0)]
    assert row.alternate(0, 7) is row.alternates[0]
    assert row.alternate(1, 8) is row.alternates[1]
    assert row.alternate(1, 7) is row.alternate(2, 8) is None


def test_alternates_are_dropped_with_the_drafts_of_their_places(decoder: Decoder) -> None:
    row = row_of([5, 1, 6, 2])
    row.drafts += [Draft(7, 0, 0.9, 0.9), Draft(8, 0, 0.9, 0.8)]
    row.alternates += [Alternate(9, 0, 0, 0.5, 0.5, spare=1), Alternate(9, 1, 0, 0.5, 0.5, spare=0)]
    row.take_waiting()
    row.take_aside()
    asides = row.pending_refs(0)[3:]
    assert [row.has(ref) for ref in asides] == [True, True]
    row.cut(1)
    assert [row.has(ref) for ref in asides] == [True, False]
    assert [alternate.place for alternate in row.alternates] == [0]
    assert not row.is_waiting


def test_verdicts_teach_also_what_was_not_drafted(decoder: Decoder) -> None:
    drafter = policy_drafter(decoder, None)
    row = row_of([5, 1, 6, 2, 5])
    for _ in range(40):
        row.guesses.clear()
        row.drafts.clear()
        drafter.begin([row], estimate())
        drafter.look_up([row], estimate())
        drafter.catch_up()  # as every step does, to learn from the one before
        drafter.learn([row], [RowResult(sequence_id=0, token_ids=[50])], estimate())
    before = row.guesses[0].chance.probability
    assert before < 0.1
    assert row.state.lookup.recent < 0.01


def test_every_verdict_is_learned_from_once(decoder: Decoder) -> None:
    verdicts: list[bool] = []
    drafter, row = policy_drafter(decoder, None), row_of(REPETITIVE)
    drafter._chances.on_verdict = lambda _, accepted: verdicts.append(accepted)
    drafter.begin([row], estimate())
    drafter.look_up([row], estimate())
    assert row.draft_ids == [7, 8, 9, 10, 11, 12]
    drafter.learn([row], [RowResult(sequence_id=0, token_ids=[7, 8, 1])], estimate())
    assert verdicts == []
    drafter.catch_up()
    drafter.catch_up()
    assert verdicts == [True, True, False]


@pytest.mark.parametrize("is_queued", [False, True])
def test_what_parts_take_is_learned_once_the_last_one_is_launched(
    decoder: Decoder, is_queued: bool
) -> None:
    """What a call took tells nothing where it returns before the device has computed."""
    cost = CostModel([CostCurve([1], [1.0])], [], CostCurve([1], [1.0]), is_fixed=False)
    drafter = PolicyDrafter(ExitPolicy(0, cost), Chances([], {}), is_queued=is_queued)
    step = estimate()
    drafter.note_segment(0, 1, 3.0, step)
    assert step.seconds == cost.segment(0, 1) == 1.0
    drafter.catch_up()
    assert (cost.segment(0, 1) > 1.0) is not is_queued


def test_parts_count_the_tokens_that_they_have(decoder: Decoder) -> None:
    now = [0.0]
    heads = random_heads(decoder, [1], VOCAB)
    drafter = policy_drafter(decoder, heads, clock=lambda: now[0])
    seen: list[tuple[CostCurve, int, float]] = []
    cost = drafter._cost
    cost.on_observation = lambda *part: seen.append(part)
    opinions = ExitEvaluator(heads, Sampler(decoder.ops)).opinions

    def slow(*args: Any) -> list[list[Opinion]]:
        now[0] += 0.5
        return opinions(*args)

    drafter._exit_evaluator.opinions = slow  # type: ignore[method-assign, union-attr]
    row, step = row_of(REPETITIVE, threshold=1.0), estimate()
    row.drafts += [Draft(7, None, 0.9, 0.9), Draft(8, None, 0.9, 0.8)]
    drafter.begin([row], step)
    evaluate(drafter, row, step)
    row.drafts = [Draft(7, None, 0.9, 0.9)]
    step.last_seconds = 0.25
    drafter.learn([row], [RowResult(sequence_id=0, token_ids=[7])], step)
    assert seen == [(cost.heads[0], 3, 0.5), (cost.last_logits, 2, 0.25)]
    assert step.seconds == pytest.approx(cost.head(0, 3))
    prompt = prompt_of(REPETITIVE)
    prompt.plan = replace(prompt.plan, is_decoding=False)
    drafter.begin([prompt], step)
    drafter.learn([prompt], [RowResult(sequence_id=0, token_ids=[])], step)
    assert len(seen) == 2, "no token was chosen"


def test_a_rebuilt_state_drafts_the_same(decoder: Decoder) -> None:
    """After preemption or a crash the state comes from the tokens alone."""
    starts = [sequence_start(0, REPETITIVE)]
    driver = StepDriver(decoder, 16, policy_drafter(decoder, None))
    tokens, results = driver.generate(starts, 30)
    assert any(draft.exit_layer == LOOKED_UP for result in results for draft in result.drafts)
    half = tokens[0][: len(REPETITIVE) + 15]
    rebuilt = SequenceState(sequence_start(0, half))
    grown = SequenceState(sequence_start(0, REPETITIVE))
    grown.append(half[len(REPETITIVE) :])
    assert rebuilt.lookup.find([], 6) == grown.lookup.find([], 6)
