"""The policy drafts while expected tokens per second rise, and stops when it does not pay."""

import pytest

from engine.policy_reason import PolicyReason
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.drafting_switch import StepOutcome
from engine.worker.exit_choice import EvaluationRequest
from engine.worker.exit_policy import DraftGain, ExitPolicy
from engine.worker.step_estimate import StepEstimate

pytestmark = pytest.mark.torch

WHOLE = EvaluationRequest(worth_share=1.0, num_tokens=1)


def policy(per_token: float = 0.01, longest_step_s: float | None = None) -> ExitPolicy:
    """A policy for which segment 0 and its head cost a tenth of a pass, and a further token
    `per_token`.
    """
    segments = [CostCurve([1, 64], [0.08, 0.10]), CostCurve([1, 64], [0.7, 0.7 + 63 * per_token])]
    cost = CostModel(segments, [CostCurve([1, 64], [0.02, 0.03])], CostCurve([1, 64], [0.2, 0.2]))
    return ExitPolicy(1, cost, longest_step_s=longest_step_s)


def at_exit(rows: int = 1, survivals: tuple[float, ...] = ()) -> StepEstimate:
    """The estimate of a step whose rows have arrived at exit 0, with drafts pending."""
    return StepEstimate(
        num_tokens=rows + len(survivals), expected_tokens=rows + sum(survivals), seconds=0.1
    )


def before(rows: int = 1) -> StepEstimate:
    return StepEstimate(num_tokens=rows, expected_tokens=float(rows))


def outcome(committed: int, expected: float, seconds: float) -> StepOutcome:
    """The outcome of one row's step that took as long as its parts."""
    return StepOutcome(
        num_rows=1,
        num_committed=committed,
        num_expected=expected,
        modelled_s=seconds,
        took_s=seconds,
    )


def test_drafts_when_sure_and_not_when_unsure() -> None:
    assert policy().select(0, [DraftGain(0.9)], at_exit()) == [0]
    assert policy().select(0, [DraftGain(0.05)], at_exit()) == []


def test_a_run_unlikely_to_survive_ends() -> None:
    assert policy().select(0, [DraftGain(0.09)], at_exit(1, (0.5, 0.3, 0.1))) == []


def test_in_a_batch_only_the_likely_rows_draft() -> None:
    offers = [DraftGain(0.9), DraftGain(0.02), DraftGain(0.95)]
    assert policy().select(0, offers, at_exit(3)) == [2, 0]


def test_a_draft_that_replaces_others_has_to_be_worth_more_than_they_are() -> None:
    step = at_exit(1, (0.3, 0.1))
    assert policy().select(0, [DraftGain(0.45 - 0.4, num_replaced=2)], step) == []
    assert policy().select(0, [DraftGain(0.9 - 0.4, num_replaced=2)], step) == [0]


def test_a_draft_saves_the_time_of_those_that_it_replaces() -> None:
    step = at_exit(1, (0.3, 0.1))
    assert policy(per_token=0.3).select(0, [DraftGain(0.05, num_replaced=2)], step) == [0]


def test_beside_drafts_that_are_made_in_any_case_only_a_further_token_has_to_pay() -> None:
    offer, p = DraftGain(0.55), policy(per_token=0.3)
    assert p.select(0, [offer], at_exit(2)) == [], "it would pay for the way down as well"
    assert p.select(0, [offer], at_exit(2, (0.9,)), num_fixed=1) == [0]
    assert p.select(0, [DraftGain(0.45)], at_exit(2, (0.9,)), num_fixed=1) == []


def test_free_drafts_enter_as_far_as_they_are_likely_enough() -> None:
    run = [0.9, 0.8, 0.6, 0.009, 0.001]
    assert policy().extend([run], 1, before()) == [3]
    assert policy(per_token=0.5).extend([run], 1, before()) == [2]
    assert policy(per_token=2.0).extend([run], 1, before()) == [0]


@pytest.mark.parametrize(
    ("longest_s", "count"), [(None, 3), (1.5, 3), (1.25, 2), (1.05, 0), (0.5, 0)]
)
def test_drafts_never_make_a_step_longer_than_asked(longest_s: float | None, count: int) -> None:
    p = policy(per_token=0.12, longest_step_s=longest_s)
    assert p.extend([[0.9, 0.88, 0.86]], 1, before()) == [count]
    assert p.keep(0, [[0.9, 0.88, 0.86]], at_exit()) == [count]
    may_draft = count > 0
    assert bool(p.select(0, [DraftGain(0.9)], at_exit())) is may_draft
    assert bool(p.rows_to_evaluate(0, [WHOLE], at_exit())) is may_draft
    assert p.will_evaluate(1, before()) is may_draft
    may_add = longest_s is None or longest_s > 1.4
    assert bool(p.num_alternates(0, [0.9], 1, at_exit(1, (0.4,)))) is may_add


def test_what_segment_0_takes_for_them_counts_against_free_drafts() -> None:
    """They enter it together with the tokens that wait there."""
    segment_0 = CostCurve([1, 2, 3], [0.1, 0.1, 1.1])
    p = ExitPolicy(0, CostModel([segment_0], [], CostCurve([1, 64], [0.9, 0.9])))
    assert p.extend([[0.9, 0.8]], 1, before()) == [1]
    assert p.extend([[0.9, 0.8]], 2, before()) == [0]


def test_free_drafts_of_a_batch_compete() -> None:
    runs = [[0.9, 0.85], [0.2, 0.1], [], [0.8, 0.1]]
    assert policy(per_token=0.2).extend(runs, 4, before(4)) == [2, 0, 0, 1]


@pytest.mark.parametrize("num_prompt_tokens", [0, 200])
def test_beside_a_prompt_a_draft_has_to_pay_as_without_it(num_prompt_tokens: int) -> None:
    p = policy(per_token=0.2)  # four rows get a token about every 0.4 s
    step = StepEstimate(num_tokens=4 + num_prompt_tokens, expected_tokens=4.0)
    p.begin(step, may_control=True)
    runs = [[0.9, 0.85], [0.2, 0.1], [], [0.8, 0.1]]
    assert p.extend(runs, 4 + num_prompt_tokens, step) == [2, 0, 0, 1]
    step.seconds += p.cost.segment(0, step.num_tokens)
    assert p.select(0, [DraftGain(0.9), DraftGain(0.1)], step) == [0]
    assert p.keep(0, runs, step) == [2, 0, 0, 1]


def test_where_a_steps_length_is_limited_its_prompts_count() -> None:
    p, step = policy(longest_step_s=5.0), StepEstimate(num_tokens=204, expected_tokens=4.0)
    p.begin(step, may_control=True)
    assert step.seconds == 0.0


def test_look_up_drafts_have_to_be_worth_the_pass_that_has_run_ahead() -> None:
    ahead = StepEstimate(num_tokens=1, expected_tokens=1.0, is_ahead=True)
    assert policy().extend([[0.9]], 1, before()) == [1]
    assert policy().extend([[0.9]], 1, ahead) == [0]
    assert policy().extend([[0.9, 0.85, 0.8]], 1, ahead) == [3]


def test_alternates_enter_as_far_as_they_pay() -> None:
    step = at_exit(1, (0.4,))
    assert policy().num_alternates(0, [0.3, 0.2, 0.01], 1, step) == 2
    assert policy(per_token=0.3).num_alternates(0, [0.3, 0.2, 0.01], 1, step) == 0
    assert policy().num_alternates(0, [], 1, step) == 0


def test_alternates_cost_what_time_brings_elsewhere() -> None:
    fast, step = policy(per_token=0.1), at_exit(1, (0.4,))
    assert fast.num_alternates(0, [0.2], 1, step) == 1
    fast.observe_step(outcome(3, 3.0, 1.1))
    assert fast.num_alternates(0, [0.2], 1, step) == 0
    assert fast.num_alternates(0, [0.4], 1, step) == 1


def test_an_alternate_that_enters_alone_pays_for_the_way_down() -> None:
    step = at_exit(1, (0.4,))
    assert policy().num_alternates(0, [0.1], 1, step) == 1
    assert policy().num_alternates(0, [0.1], 0, step) == 0


def test_alternates_pay_for_their_own_places_in_segment_0_only() -> None:
    """The drafts that wait there take theirs in any case."""
    segments = [CostCurve([1, 2, 3], [0.1, 0.1, 1.1]), CostCurve([1, 64], [0.7, 0.7])]
    p = ExitPolicy(1, CostModel(segments, [], CostCurve([1, 64], [0.2, 0.2])))
    step = at_exit(1, (0.4,))
    assert p.num_alternates(0, [0.3, 0.2], 1, step) == 1
    assert p.num_alternates(0, [0.3, 0.2], 2, step) == 0


def test_screening_drops_what_the_deep_layers_would_be_wasted_on() -> None:
    assert policy(per_token=0.1).keep(0, [[0.9, 0.02, 0.01]], at_exit()) == [1]
    assert policy(per_token=0.0).keep(0, [[0.9, 0.02, 0.011]], at_exit()) == [3]


def test_evaluations_that_bring_nothing_are_left_out_and_tried_again() -> None:
    p = policy()
    assert p.rows_to_evaluate(0, [WHOLE], at_exit()) == [0]
    for _ in range(60):
        p.observe_evaluation(0, 1.0, [], at_exit(), price=1.0)
    evaluates = [bool(p.rows_to_evaluate(0, [WHOLE], at_exit())) for _ in range(64)]
    assert sum(evaluates) < 64
    assert not any(evaluates[:12])
    assert any(evaluates[12:])
    for _ in range(60):
        p.observe_evaluation(0, 1.0, [DraftGain(0.9)], at_exit(), price=1.0)
    assert p.rows_to_evaluate(0, [WHOLE], at_exit()) == [0]


@pytest.mark.parametrize(
    ("chosen", "gain"),
    [
        ([], 0.0),
        ([DraftGain(0.4, num_replaced=1)], 0.4 - 1.5 / 1.3 * 0.08),  # only the way down is new
        ([DraftGain(0.7)], 0.7 - 1.5 / 1.3 * (0.08 + 0.3)),
        ([DraftGain(0.3)], 0.0),  # it was made beside others; the evaluation lost nothing
    ],
)
def test_an_evaluation_brings_what_its_drafts_bring_less_their_time(
    chosen: list[DraftGain], gain: float
) -> None:
    p = policy(per_token=0.3)
    p.observe_evaluation(0, 1.0, chosen, at_exit(1, (0.5,)), price=1.0)
    assert p.report.looks == pytest.approx([0.95 * 0.15 + 0.05 * gain])


def costly_heads(share: float) -> ExitPolicy:
    """A policy for which an evaluation takes `share` seconds, and a plain step 1 second; the first
    one has brought nothing.
    """
    segments = [CostCurve([1, 64], [0.1, 0.1]), CostCurve([1, 64], [0.7, 0.7])]
    heads = [CostCurve([1, 64], [share, share])]
    policy = ExitPolicy(1, CostModel(segments, heads, CostCurve([1, 64], [0.2, 0.2])))
    policy.observe_evaluation(0, 1.0, [], at_exit(), price=1.0)
    return policy


def test_costly_evaluations_are_tried_so_rarely_that_they_cost_little() -> None:
    p = costly_heads(0.7)
    evaluated = [p.rows_to_evaluate(0, [WHOLE] * 9, at_exit(9)) for _ in range(300)]
    trials = [number for number, rows in enumerate(evaluated) if rows]
    assert trials[0] >= 140
    assert evaluated[trials[0]] == [0, 1, 2, 3], "a few rows are enough"


@pytest.mark.parametrize(("took_s", "steady_s", "least"), [(1.7, 1.0, 140), (2.7, 1.0, 330)])
def test_trials_are_as_rare_as_steps_that_evaluate_are_slow(
    took_s: float, steady_s: float, least: int
) -> None:
    p = costly_heads(0.7)
    for _ in range(60):  # a plain step is measured as said, one that evaluates as it is
        p.pass_by(1, steady_s)
        p.observe_step(
            StepOutcome(
                num_rows=1, num_committed=9, num_expected=9.0, modelled_s=1.7, took_s=took_s
            )
        )
    evaluates = [bool(p.rows_to_evaluate(0, [WHOLE], at_exit())) for _ in range(600)]
    assert least - 5 <= evaluates.index(True) <= least + 20


def test_a_trial_costs_the_passes_that_cannot_run_ahead_as_well() -> None:
    flat = [CostCurve([1, 64], [seconds, seconds]) for seconds in (0.1, 0.7, 0.7, 0.2, 0.5)]
    p = ExitPolicy(1, CostModel(flat[:2], flat[2:3], flat[3], steady=flat[4]))
    evaluates = [bool(p.rows_to_evaluate(0, [WHOLE], at_exit())) for _ in range(1000)]
    lost = (1.0 + 0.7) / 0.5 - 1.0 + (1.0 - 0.5) / 0.5
    assert evaluates.index(True) == pytest.approx(lost / 0.005, abs=2)


def test_evaluations_that_cannot_pay_are_tried_even_less_often() -> None:
    for share, least, most in ((1.8, 300, 400), (2.2, 3300, 3700)):
        p = costly_heads(share)
        evaluates = [bool(p.rows_to_evaluate(0, [WHOLE], at_exit())) for _ in range(4000)]
        assert least <= evaluates.index(True) <= most, share


def test_whether_to_evaluate_at_all_is_decided_before_the_step_and_only_now_and_then() -> None:
    p = costly_heads(0.7)
    answers = [(p.will_evaluate(1, before()), p.may_evaluate_next) for _ in range(9)]
    assert [will for will, _ in answers] == [False] * 9
    assert [may for _, may in answers] == [False] * 7 + [True, False], "every eighth time"
    evaluates = [p.will_evaluate(1, before()) for _ in range(400)]
    assert 120 < evaluates.index(True) < 160, "it is due, as it would be at the exit"
    assert policy().will_evaluate(1, before())
    assert not policy().will_evaluate(0, before())


def test_once_an_evaluation_has_paid_the_next_rest_is_a_short_one() -> None:
    p = costly_heads(0.7)
    assert not any(p.will_evaluate(1, before()) for _ in range(8 + 16))
    p.observe_evaluation(0, 1e9, [DraftGain(1e9)], at_exit(), price=1.0)
    assert p.will_evaluate(1, before())
    p.observe_evaluation(0, 1e9, [], at_exit(), price=1.0)
    answers = [(p.will_evaluate(1, before()), p.may_evaluate_next) for _ in range(8)]
    assert answers == [(False, False)] * 7 + [(False, True)]


def test_evaluations_compete_with_steps_that_take_the_way_to_the_exit_too() -> None:
    flat = [CostCurve([1, 64], [seconds, seconds]) for seconds in (9.0, 0.1, 0.7)]
    p = ExitPolicy(1, CostModel(flat[:2], flat[2:], CostCurve([1, 64], [0.1, 0.1])))
    assert p.will_evaluate(1, before()), "a second brings a ninth of a token elsewhere"


def test_whether_the_next_step_evaluates_is_decided_in_the_one_before() -> None:
    p = costly_heads(0.7)
    assert not p.will_evaluate(1, before())
    answers = []
    for _ in range(200):
        answers.append(p.will_evaluate_next(1))
        assert p.will_evaluate(1, before()) == answers[-1], "as predicted"
    assert answers.count(True) >= 1, "it is due at last"
    assert policy().will_evaluate_next(1)


def test_for_another_number_of_rows_it_is_decided_at_once() -> None:
    p = costly_heads(0.7)
    assert not p.will_evaluate(1, before())
    p.will_evaluate(1, before())
    p.observe_evaluation(
        0, 1e9, [DraftGain(1e9)], at_exit(), price=1.0
    )  # now evaluations are worth a lot
    assert not p.will_evaluate(1, before())
    assert p.will_evaluate(2, before(2))


def test_evaluating_many_rows_once_teaches_as_much_as_one_row_many_times() -> None:
    one, many = policy(), policy()
    for _ in range(24):
        one.observe_evaluation(0, 1.0, [], at_exit(), price=1.0)
    for _ in range(3):
        many.observe_evaluation(0, 8.0, [], at_exit(8), price=1.0)
    assert one.report.looks == pytest.approx([0.0438], abs=1e-4)
    assert many.report.looks == pytest.approx(one.report.looks)


def test_rows_whose_drafts_are_hardly_accepted_are_not_evaluated() -> None:
    requests = [WHOLE, EvaluationRequest(0.001, 5), EvaluationRequest(0.9, 1)]
    assert policy().rows_to_evaluate(0, requests, at_exit(3)) == [0, 2]


def test_a_control_drafts_nothing_and_is_a_step_that_only_decodes() -> None:
    p = policy()
    for _ in range(4):
        p.observe_step(outcome(3, 3.0, 1.1))
    p.begin(before(), may_control=False)
    assert p.is_drafting
    p.begin(before(), may_control=True)
    assert p.is_control
    assert not p.is_drafting


def test_a_step_of_prompts_alone_leaves_the_state_of_the_batch_as_it_is() -> None:
    p = policy()
    p.begin(before(4), may_control=False)
    p.observe_step(outcome(1, 4.5, 9.0))
    assert not p.is_drafting
    p.begin(StepEstimate(num_tokens=64, expected_tokens=0.0), may_control=False)
    assert not p.is_drafting


def test_switches_off_when_drafting_does_not_pay_and_comes_back() -> None:
    p = policy()
    for _ in range(40):
        p.observe_step(outcome(1, 1.0, 1.08))  # one token for more than a plain step's cost
        if not p.is_drafting:
            break
    assert not p.is_drafting
    assert p.report.reason is PolicyReason.COSTS_MORE
    assert "tries again in 32 steps" in p.report.text
    assert p.select(0, [DraftGain(0.99)], at_exit()) == []
    assert p.extend([[0.99]], 1, before()) == [0]
    assert p.rows_to_evaluate(0, [WHOLE], at_exit()) == []
    assert p.num_alternates(0, [0.99], 1, at_exit(1, (0.4,))) == 0
    assert not p.will_evaluate(1, before())
    for _ in range(32):
        p.pass_by(1, None)
    assert p.report.reason is PolicyReason.PROBING
    for _ in range(100):
        p.observe_step(outcome(3, 2.5, 1.3))
    assert p.report.reason is PolicyReason.DRAFTING
    assert p.report.speedup == pytest.approx(3 * 0.98 / 1.3)
