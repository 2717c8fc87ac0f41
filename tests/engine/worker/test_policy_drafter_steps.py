"""Steps as a policy drafter tells them apart: which may draft, which are judged or plain."""

import pytest
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
from engine.worker.chances import Chances
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.exit_policy import ExitPolicy
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.sampler import Sampler
from engine.worker.step_estimate import StepEstimate
from engine.worker.step_watch import StepWatch

pytestmark = pytest.mark.torch


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
        [CostCurve([1], [1.4])],
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
    assert len(evaluations) == 1, "an early step tries whether it would pay, then one of 280"
