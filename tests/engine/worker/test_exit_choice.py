"""Which rows are evaluated, and how rarely where that does not pay."""

import pytest

from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.exit_choice import EvaluationRequest, ExitChoice


def choice(share: float = 0.1, num_exits: int = 1) -> ExitChoice:
    """A choice for which evaluating any number of rows takes `share` s, a plain step about 1 s."""
    cost = CostModel(
        [CostCurve([1, 64], [0.5, 0.5])] * (num_exits + 1),
        [CostCurve([1, 64], [share, share])] * num_exits,
        CostCurve([1, 64], [0.1, 0.1]),
    )
    return ExitChoice(num_exits, cost)


def tried(some: ExitChoice) -> ExitChoice:
    """A choice whose first trial has been made, in vain."""
    some.add(0, 0.0, 1.0, num_rows=1, rate=1.0)
    return some


def test_rows_are_evaluated_as_far_as_each_is_worth_its_time() -> None:
    requests = [EvaluationRequest(share, 1) for share in (0.2, 1.0, 0.5)]
    assert choice().choose(0, requests, rate=1.0, trial_steps=0.0) == [1, 2, 0], "one price for all"
    assert choice().choose(0, requests, rate=4.0, trial_steps=0.0) == []


def test_a_row_with_more_tokens_to_evaluate_costs_more() -> None:
    heads = [CostCurve([1, 64], [0.1, 6.4])]
    some = ExitChoice(1, CostModel([CostCurve([1], [1.0])] * 2, heads, CostCurve([1], [1.0])))
    requests = [EvaluationRequest(1.0, 9), EvaluationRequest(0.9, 1)]
    assert some.choose(0, requests[1:], rate=1.0, trial_steps=0.0) == [0]
    assert some.choose(0, requests, rate=1.0, trial_steps=0.0) == []


def test_rests_grow_and_end_with_another_batch_or_an_evaluation_that_pays() -> None:
    some = choice()

    def rest() -> int:
        """Return the number of steps until it is decided again."""
        some.rest(2)
        count = 1
        while some.is_resting:
            assert some.skips(2)
            count += 1
        assert not some.skips(2)
        return count

    assert [rest() for _ in range(4)] == [8, 16, 16, 16]
    some.wake()
    assert rest() == 8
    some.rest(2)
    assert not some.skips(3), "for other rows it is decided at once"
    assert not some.is_resting
    assert rest() == 8


def test_a_trial_is_due_no_sooner_where_the_batch_changes_in_every_step() -> None:
    some = tried(choice())
    num_steps = 0
    while not some.choose(0, [EvaluationRequest(1.0, 1)], rate=4.0, trial_steps=0.0):
        num_rows = 2 + num_steps % 2
        assert not some.skips(num_rows)
        some.rest(num_rows)
        num_steps += 1
    assert num_steps == 19


def test_every_exit_has_an_account_of_its_own() -> None:
    some = choice(num_exits=2)
    for _ in range(20):
        some.add(0, 0.0, 1.0, num_rows=1, rate=2.0)
        some.add(1, 0.8, 1.0, num_rows=1, rate=2.0)
    worse, better = some.worths
    assert worse < 0.1 < 0.4 < better
    assert some.choose(0, [EvaluationRequest(1.0, 1)], rate=2.0, trial_steps=0.0) == []
    assert some.choose(1, [EvaluationRequest(1.0, 1)], rate=2.0, trial_steps=0.0) == [0]


@pytest.mark.parametrize(
    ("head_s", "num_steps"),
    [((1.0, 1.0, 1000.0), 200), ((20.0, 20.0, 20.0), 200), ((1000.0, 1000.0, 1000.0), 1600)],
)
def test_trials_are_rarer_where_neither_a_few_rows_nor_all_could_pay(
    head_s: tuple[float, ...], num_steps: int
) -> None:
    """An evaluation of all 64 rows takes as long as a plain step here, and seldom half a percent
    of the time.
    """
    heads, plain = CostCurve([1, 4, 64], head_s), CostCurve([1], head_s[-1:])
    some = tried(ExitChoice(1, CostModel([], [heads], plain)))
    requests = [EvaluationRequest(1.0, 1)] * 64
    for _ in range(num_steps):
        assert some.choose(0, requests, rate=1.0, trial_steps=0.0) == []
        some.leave_out(0)
    assert some.choose(0, requests, rate=1.0, trial_steps=0.0) == [0, 1, 2, 3]


@pytest.mark.parametrize(("trial_steps", "num_steps"), [(0.0, 19), (0.5, 100), (2.5, 500)])
def test_trials_are_the_rarer_the_more_plain_steps_one_was_measured_to_cost(
    trial_steps: float, num_steps: int
) -> None:
    some, requests = tried(choice()), [EvaluationRequest(1.0, 1)]
    for _ in range(num_steps):
        assert some.choose(0, requests, rate=4.0, trial_steps=trial_steps) == []
        some.leave_out(0)
    assert some.choose(0, requests, rate=4.0, trial_steps=trial_steps) == [0]


@pytest.mark.parametrize(("gain", "num_steps"), [(0.41, 8), (0.39, 500), (0.0, 500)])
def test_a_trial_of_some_rows_pays_if_as_much_from_all_would_be_worth_the_time(
    gain: float, num_steps: int
) -> None:
    some, requests = choice(), [EvaluationRequest(1.0, 1)] * 16
    some.add(0, gain, offered=4.0, num_rows=16, rate=16.0)  # the time is worth 1.6 tokens
    steps = 0
    while some.choose(0, requests, rate=40.0, trial_steps=2.5) != [0, 1, 2, 3]:
        some.leave_out(0)
        steps += 1
    assert steps == num_steps
