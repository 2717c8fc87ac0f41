"""Both sources of drafts in real steps: what each drafts, what is screened, what is learned."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import (
    VOCAB,
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)

from engine.model.decoder import Decoder
from engine.model.ops.torch_ops import TorchOps
from engine.plan import RowPlan, RowResult
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
from engine.worker.step_watch import StepWatch

pytestmark = pytest.mark.torch

REPETITIVE = [7, 8, 9, 10, 11, 12] * 3


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))


def row_of(token_ids: list[int], **options: object) -> Row:
    """A decoding row before any draft."""
    state = SequenceState(sequence_start(0, token_ids, **options))
    state.last_hidden = torch.ones(48)
    plan = RowPlan(
        sequence_id=0,
        start=len(token_ids) - 1,
        num_tokens=1,
        block_table=[0],
        max_draft_tokens=6,
        is_decoding=True,
    )
    return Row(plan, state)


def prompt_of(token_ids: list[int]) -> Row:
    """A row whose prompt the step computes, with the first token after it."""
    row = row_of(token_ids)
    row.plan = replace(row.plan, start=0, num_tokens=len(token_ids))
    return row


def estimate() -> StepEstimate:
    return StepEstimate(num_tokens=1, expected_tokens=1.0)


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


def test_a_step_begins_with_whether_anyone_may_draft(decoder: Decoder) -> None:
    drafter = policy_drafter(decoder, None)
    row, plain = row_of(REPETITIVE), row_of(REPETITIVE, early_exit=False)
    fixed = row_of(REPETITIVE, threshold=0.0)
    assert drafter.begin([plain, row], estimate())
    assert not drafter.begin([plain], estimate())
    dear = StepEstimate(num_tokens=1, expected_tokens=5.0, seconds=60.0)
    assert drafter.begin([row], estimate())
    drafter.learn([row], [RowResult(sequence_id=0, token_ids=[7])], dear)
    assert not drafter.begin([plain, row], estimate()), "the policy pauses"
    assert drafter.begin([row, fixed], estimate())


def test_a_step_is_judged_if_the_policy_decides_about_all_that_may_draft(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bool] = []
    monkeypatch.setattr(ExitPolicy, "begin", lambda *_, may_control: judged.append(may_control))
    drafter = policy_drafter(decoder, None)
    row, plain = row_of(REPETITIVE), row_of(REPETITIVE, early_exit=False)
    fixed, prompt = row_of(REPETITIVE, threshold=0.0), prompt_of(REPETITIVE)
    for rows in ([row], [row, plain], [row, prompt], [row, fixed], [plain], [prompt]):
        drafter.begin(rows, estimate())
    assert judged == [True, True, False, False, False, False]


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_device_that_computes_a_pass_run_ahead_is_not_idle(
    decoder: Decoder, is_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle: list[bool] = []
    monkeypatch.setattr(StepWatch, "begin", lambda _, *, is_idle: idle.append(is_idle))
    step = StepEstimate(num_tokens=1, expected_tokens=1.0, is_ahead=is_ahead)
    policy_drafter(decoder, None).begin([row_of(REPETITIVE)], step)
    assert idle == [not is_ahead]


def test_rows_that_never_draft_do_not_count_where_evaluations_are_weighed(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    for name in ("will_evaluate", "will_evaluate_next"):
        monkeypatch.setattr(ExitPolicy, name, lambda _, num_rows, *__: counts.append(num_rows))
    drafter = policy_drafter(decoder, random_heads(decoder, [2], VOCAB))
    rows = [row_of(REPETITIVE), row_of(REPETITIVE, early_exit=False), row_of(REPETITIVE)]
    drafter.begin(rows, estimate())
    drafter.will_evaluate_exits(rows, estimate())
    drafter.may_draft_next(rows)
    assert counts == [2, 2]


def test_a_pause_also_passes_beside_rows_that_never_draft(decoder: Decoder) -> None:
    now = [0.0]
    drafter = policy_drafter(decoder, None, clock=lambda: now[0])
    row, plain = row_of(REPETITIVE), row_of(REPETITIVE, early_exit=False)
    result = RowResult(sequence_id=0, token_ids=[7])
    assert drafter.begin([row], estimate())
    now[0] = 60.0
    drafter.learn([row], [result], StepEstimate(1, 5.0, seconds=60.0))
    for _ in range(1024):
        assert not drafter.begin([plain, row], estimate())
        drafter.learn([plain, row], [result, result], estimate())
    assert drafter.begin([plain, row], estimate())


def test_only_plain_steps_among_others_say_what_a_plain_step_takes(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one with a prompt or with drafts, nor the first ones after such a step."""
    now = [0.0]
    measured: list[float | None] = []
    monkeypatch.setattr(ExitPolicy, "is_drafting", False)
    monkeypatch.setattr(ExitPolicy, "pass_by", lambda _, __, took_s: measured.append(took_s))
    drafter = policy_drafter(decoder, None, clock=lambda: now[0])
    row, fixed = row_of(REPETITIVE), row_of(REPETITIVE, threshold=0.0)
    prompt = prompt_of(REPETITIVE)
    result = RowResult(sequence_id=0, token_ids=[7])
    for other in (None, None, None, prompt, None, None, None, fixed, None, None, None):
        rows = [row] if other is None else [row, other]
        drafter.begin(rows, estimate())
        now[0] += 1.0
        drafter.learn(rows, [result] * len(rows), estimate())
    assert measured == [None, None, 1.0, None, None, None, 1.0, None, None, None, 1.0]


def test_what_does_not_pay_ends_beside_rows_that_never_draft(decoder: Decoder) -> None:
    now = [0.0]
    drafter = policy_drafter(decoder, None, clock=lambda: now[0])
    plain, result = row_of(REPETITIVE, early_exit=False), RowResult(sequence_id=0, token_ids=[7])
    num_drafting = 0
    for _ in range(3000):
        row = row_of(REPETITIVE)
        step = StepEstimate(num_tokens=2, expected_tokens=2.0)
        if drafter.begin([row, plain], step):
            num_drafting += 1
            now[0] += 100.0
            step = StepEstimate(num_tokens=2, expected_tokens=3.0, seconds=2.0)
        else:
            now[0] += 2.0
        drafter.learn([row, plain], [result, result], step)
    assert num_drafting < 30


def test_a_threshold_counts_for_rows_that_may_draft(decoder: Decoder) -> None:
    drafter = policy_drafter(decoder, random_heads(decoder, [2], VOCAB))
    barred = row_of(REPETITIVE, early_exit=False, threshold=0.5)
    assert not drafter.begin([barred], estimate())
    assert not drafter.may_draft_next([barred])
    assert drafter.wants_states([barred]), "in the next step it may"


def test_whether_the_next_step_may_have_drafts_is_known_in_advance(decoder: Decoder) -> None:
    now = [0.0]
    heads = random_heads(decoder, [2], VOCAB)
    drafter = policy_drafter(decoder, heads, clock=lambda: now[0])
    row, plain = row_of(REPETITIVE), row_of(REPETITIVE, early_exit=False)
    fixed = row_of(REPETITIVE, threshold=0.5)
    result = RowResult(sequence_id=0, token_ids=[7])
    drafter.begin([row], estimate())
    assert drafter.may_draft_next([row])
    assert drafter.wants_states([row])
    drafter.begin([plain], estimate())
    assert not drafter.may_draft_next([plain])
    drafter.begin([row], estimate())
    now[0] = 60.0
    drafter.learn([row], [result], StepEstimate(1, 5.0, seconds=60.0))
    answers = []
    while not drafter.begin([row], estimate()):
        answers.append(drafter.may_draft_next([row]))
        assert drafter.wants_states([row]) is answers[-1]
        assert drafter.wants_states([row, fixed])
        drafter.learn([row], [result], estimate())
    assert answers == [False] * (len(answers) - 1) + [True], "the last step of a pause"
    drafter.begin([row, fixed], estimate())
    assert drafter.may_draft_next([row, fixed])
    without_heads = policy_drafter(decoder, None)
    without_heads.begin([row], estimate())
    assert not without_heads.may_draft_next([row]), "a look-up that finds something is worth it"
    assert not without_heads.wants_states([row, fixed])
    without_heads.begin([row, fixed], estimate())
    assert without_heads.may_draft_next([row, fixed])


class Played:
    """A simulated device: plain steps take 2 s, or 1 s if they ran ahead; with drafts, 3 s."""

    def __init__(self) -> None:
        self.now = 0.0
        steady = CostCurve([1, 2], [1.0, 9.0])  # there is never more than one row
        cost = CostModel([CostCurve([1], [1.0])], [], CostCurve([1], [1.0]), steady)
        self.drafter = PolicyDrafter(
            ExitPolicy(0, cost),
            Chances([], {}),
            clock=lambda: self.now,
            is_queued=True,
        )
        self.kinds: list[str] = []
        self.tokens = 0
        self._runs_ahead = False

    def step(self, *, repeats: bool, right: int) -> None:
        """Run one step.

        Args:
            repeats: Whether the text repeats itself, so that a look-up finds something.
            right: Number of drafts accepted, if there are any.
        """
        row = row_of(REPETITIVE if repeats else list(range(40)))
        step = StepEstimate(num_tokens=1, expected_tokens=1.0, is_ahead=self._runs_ahead)
        drafts = self.drafter.begin([row], step)
        if drafts:
            self.drafter.look_up([row], step)
            drafts = bool(row.drafts) or self.drafter.will_evaluate_exits([row], step)
        was_ahead, self._runs_ahead = self._runs_ahead, False
        ahead = was_ahead and not drafts
        if drafts:
            self.now += 3.0 + was_ahead
            step.seconds += 2.0
        else:
            self.drafter.note_pass(1, step, is_ahead=ahead)
            self.now += 1.0 if ahead else 2.0
            self._runs_ahead = not self.drafter.may_draft_next([row])
        ids = [7] * (1 + (right if row.drafts else 0))
        self.drafter.catch_up()
        self.drafter.learn([row], [RowResult(sequence_id=0, token_ids=ids)], step)
        self.tokens += len(ids)
        self.kinds.append("draft" if drafts else "ahead" if ahead else "alone")


def test_a_pass_launched_ahead_is_a_cost_of_the_drafts_that_forgo_it() -> None:
    drafter, step = Played().drafter, StepEstimate(1, 1.0, is_ahead=True)
    found, new = row_of(REPETITIVE), row_of(list(range(40)))
    drafter.begin([new], step)
    drafter.look_up([new], step)
    assert (step.is_ahead, step.seconds) == (True, 0.0)
    drafter.look_up([found], step)
    assert found.drafts
    assert (step.is_ahead, step.seconds) == (False, 1.0)


def test_on_a_device_plain_steps_count_as_what_they_take_in_a_row() -> None:
    """A step with a right draft brings 2 tokens in 3 s; a single plain one would bring 1 in 2 s."""
    played = Played()
    for _ in range(2000):
        played.step(repeats=True, right=1)
    assert played.kinds.count("ahead") > 0.95 * len(played.kinds)
    assert played.now < 1.02 * played.tokens

    gaining = Played()
    for _ in range(1000):
        gaining.step(repeats=True, right=5)  # 6 tokens in 3 s
    assert gaining.kinds.count("draft") > 0.9 * len(gaining.kinds)


def test_waiting_for_text_that_repeats_itself_does_not_cost_what_running_ahead_brings() -> None:
    played = Played()
    for _ in range(2000):
        played.step(repeats=False, right=0)
    assert played.kinds.count("ahead") > 0.98 * len(played.kinds)


def test_a_text_that_repeats_itself_now_and_then_is_caught_in_the_act() -> None:
    """The pass that has run ahead is given up for it."""
    played = Played()
    for number in range(3000):
        repeats = number % 100 >= 88
        played.step(repeats=repeats, right=5)
    late = played.kinds[1000:]
    assert late.count("draft") > 0.8 * 0.12 * len(late)
    assert late.count("alone") < 0.05 * len(late)
    assert played.now < 0.85 * played.tokens


def test_where_no_evaluation_pays_steps_run_straight_and_keep_no_states(decoder: Decoder) -> None:
    cost = CostModel(
        [CostCurve([1], [0.1]), CostCurve([1], [0.6])],
        [CostCurve([1], [0.7])],
        CostCurve([1], [0.3]),
    )
    heads = random_heads(decoder, [2], VOCAB)
    drafter = PolicyDrafter(
        ExitPolicy(1, cost),
        Chances([2], heads.calibration),
        exit_layers=[2],
        exit_evaluator=ExitEvaluator(heads, Sampler(decoder.ops)),
    )
    start = sequence_start(0, [5, 9, 2], lookup=False)
    evaluations = []
    opinions = drafter._exit_evaluator.opinions  # type: ignore[union-attr]
    drafter._exit_evaluator.opinions = (  # type: ignore[method-assign, union-attr]
        lambda *args: evaluations.append(args) or opinions(*args)  # type: ignore[func-returns-value]
    )
    driver = StepDriver(decoder, 16, drafter)
    tokens, _ = driver.generate([start], 250)
    assert tokens == StepDriver(decoder, 16).generate([start], 250)[0]
    assert len(evaluations) == 1, "one of some 140 steps tries whether it would pay now"


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
