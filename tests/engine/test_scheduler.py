"""Scenarios of scheduling: budgets, order, preemption, drafts, refusals."""

import pytest
from fake_worker import FakeWorker, make_request

from engine.config import SchedulerConfig
from engine.errors import EngineOverloaded, PromptTooLong, RequestError
from engine.limits import ModelLimits
from engine.plan import StepPlan
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest
from engine.scheduler import Committed, Scheduler


class Bench:
    """A scheduler and a fake worker."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_draft_tokens: int = 0,
        acceptance: float = 1.0,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 16,
        max_num_queued_requests: int = 100,
        max_num_queued_tokens: int | None = None,
    ) -> None:
        self.worker = FakeWorker(
            num_blocks=num_blocks, max_draft_tokens=max_draft_tokens, acceptance=acceptance
        )
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_queued_requests=max_num_queued_requests,
            max_num_queued_tokens=max_num_queued_tokens,
        )
        self.scheduler = Scheduler(config, ModelLimits.of(self.worker.info))

    def step(self) -> tuple[StepPlan, list[Committed]]:
        plan = self.scheduler.schedule()
        assert plan is not None
        self.scheduler.check()
        committed = self.scheduler.commit(plan, self.worker.execute(plan))
        self.scheduler.check()
        return plan, committed


def rows_of(plan: StepPlan) -> list[tuple[int, int]]:
    """(sequence id, tokens) of every row."""
    return [(row.sequence_id, row.num_tokens) for row in plan.rows]


def test_decoding_rows_come_first_and_a_long_prompt_takes_what_is_left() -> None:
    bench = Bench(max_num_batched_tokens=8)
    bench.scheduler.add(make_request(0, 4, ignore_eos=True))
    bench.step()
    bench.scheduler.add(make_request(1, 20))
    plans = [bench.step()[0] for _ in range(4)]
    assert [rows_of(plan) for plan in plans] == [
        [(0, 1), (1, 7)],
        [(0, 1), (1, 7)],
        [(0, 1), (1, 6)],
        [(0, 1), (1, 1)],
    ]
    assert [plan.rows[1].is_decoding for plan in plans] == [False, False, True, True]


def test_prompts_are_taken_first_come_first_served() -> None:
    bench = Bench(max_num_batched_tokens=10)
    for number in range(3):
        bench.scheduler.add(make_request(number, 6))
    assert rows_of(bench.step()[0]) == [(0, 6), (1, 4)]
    assert rows_of(bench.step()[0]) == [(0, 1), (1, 2), (2, 6)]


def test_no_more_rows_than_allowed() -> None:
    bench = Bench(max_num_seqs=2)
    for number in range(4):
        bench.scheduler.add(make_request(number, 3, ignore_eos=True))
    assert len(bench.step()[0].rows) == 2
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (2, 2)


def test_rows_never_outnumber_the_tokens_of_a_step() -> None:
    bench = Bench(max_num_seqs=8, max_num_batched_tokens=3)
    for number in range(5):
        bench.scheduler.add(make_request(number, 2, ignore_eos=True))
    for _ in range(8):
        plan, _ = bench.step()
        assert sum(row.num_tokens for row in plan.rows) <= 3
    assert {row.sequence_id for row in plan.rows} == {0, 1, 2}


def test_the_youngest_gives_way_and_comes_back_with_all_its_tokens() -> None:
    bench = Bench(num_blocks=6)
    sequences = [
        bench.scheduler.add(make_request(number, 7, ignore_eos=True, max_tokens=14))
        for number in range(2)
    ]
    while bench.scheduler.num_preemptions == 0:
        plan, _ = bench.step()
    assert plan.ended == [1]
    assert [row.sequence_id for row in plan.rows] == [0]
    assert bench.scheduler.num_waiting == 1
    known = list(sequences[1].token_ids)
    assert len(known) > 7
    while bench.scheduler.num_waiting:
        plan, _ = bench.step()
    (start,) = plan.started
    assert (start.sequence_id, start.token_ids, start.num_prompt_tokens) == (1, known, 7)


def test_nobody_is_admitted_into_the_last_free_blocks() -> None:
    bench = Bench(num_blocks=4, max_num_batched_tokens=64)
    for number in range(4):
        bench.scheduler.add(make_request(number, 4, max_tokens=4))
    plan, _ = bench.step()
    # One block each, and one more left for every sequence that runs.
    assert [row.sequence_id for row in plan.rows] == [0, 1]


def test_a_sequence_alone_may_use_every_block() -> None:
    bench = Bench(num_blocks=4, max_num_batched_tokens=64)
    sequence = bench.scheduler.add(make_request(0, 10, ignore_eos=True, max_tokens=6))
    while not sequence.is_finished:
        bench.step()
    assert bench.scheduler.num_preemptions == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (EarlyExitOptions(), 3),
        (EarlyExitOptions(max_draft_tokens=1), 1),
        (EarlyExitOptions(max_draft_tokens=5), 5),
        (EarlyExitOptions(max_draft_tokens=0), 0),
        (EarlyExitOptions(enabled=False), 0),
    ],
)
def test_who_says_how_many_drafts(options: EarlyExitOptions, expected: int) -> None:
    bench = Bench(max_draft_tokens=3, acceptance=0.0)
    bench.scheduler.add(make_request(0, 4, ignore_eos=True, early_exit=options))
    assert bench.step()[0].rows[0].max_draft_tokens == 0  # a prompt: nothing to draft from yet
    assert bench.step()[0].rows[0].max_draft_tokens == expected


def test_without_heads_nobody_drafts() -> None:
    bench = Bench(max_draft_tokens=0)
    wish = EarlyExitOptions(max_draft_tokens=4)
    bench.scheduler.add(make_request(0, 4, ignore_eos=True, early_exit=wish))
    assert [bench.step()[0].rows[0].max_draft_tokens for _ in range(3)] == [0, 0, 0]


def test_drafts_stop_short_of_the_last_token() -> None:
    bench = Bench(max_draft_tokens=3, acceptance=0.0)
    sequence = bench.scheduler.add(make_request(0, 4, ignore_eos=True, max_tokens=4))
    budgets = []
    while not sequence.is_finished:
        budgets.append(bench.step()[0].rows[0].max_draft_tokens)
    assert budgets == [0, 2, 1, 0]


def test_drafts_never_cost_a_preemption() -> None:
    # Two sequences of 16 tokens fit 8 blocks of 4 exactly; with drafts they would need more.
    bench = Bench(num_blocks=8, max_draft_tokens=3, acceptance=0.3)
    sequences = [
        bench.scheduler.add(make_request(number, 4, ignore_eos=True, max_tokens=12))
        for number in range(2)
    ]
    while not all(sequence.is_finished for sequence in sequences):
        bench.step()
    assert bench.scheduler.num_preemptions == 0


def test_what_rejected_drafts_had_reserved_is_taken_back_before_anybody_is_preempted() -> None:
    bench = Bench(num_blocks=5, max_draft_tokens=3, acceptance=0.0)
    bench.scheduler.add(make_request(0, 5, ignore_eos=True, max_tokens=12))
    younger = bench.scheduler.add(make_request(1, 7, ignore_eos=True, max_tokens=3))
    bench.step()
    bench.step()
    assert bench.scheduler.num_blocks_used == 5  # the last one for the older one's drafts
    bench.step()
    assert bench.scheduler.num_preemptions == 0
    assert younger.finish_reason is FinishReason.LENGTH


def test_blocks_are_free_as_soon_as_a_sequence_ends() -> None:
    bench = Bench()
    sequence = bench.scheduler.add(make_request(0, 4, max_tokens=1))
    bench.step()
    assert sequence.finish_reason is FinishReason.LENGTH
    assert bench.scheduler.num_blocks_used == 0
    plan, _ = bench.step()
    assert (plan.ended, plan.rows) == ([0], [])
    assert bench.scheduler.schedule() is None


def test_abort_in_flight_drops_the_result() -> None:
    bench = Bench()
    sequence = bench.scheduler.add(make_request(0, 4))
    plan = bench.scheduler.schedule()
    assert plan is not None
    bench.scheduler.abort(sequence)
    bench.scheduler.abort(sequence)
    assert bench.scheduler.num_blocks_used == 0
    assert bench.scheduler.commit(plan, bench.worker.execute(plan)) == []
    assert sequence.num_output_tokens == 0


def test_abort_while_waiting_tells_the_worker_nothing() -> None:
    bench = Bench()
    bench.scheduler.abort(bench.scheduler.add(make_request(0)))
    assert bench.scheduler.schedule() is None


def test_a_full_queue_refuses_and_says_how_long_the_wait_may_be() -> None:
    bench = Bench(max_num_seqs=2, max_num_queued_requests=3)
    for number in range(5):
        bench.scheduler.add(make_request(number))
    with pytest.raises(EngineOverloaded) as refused:
        bench.scheduler.add(make_request(5))
    assert refused.value.retry_after_s == 3
    bench.step()
    with pytest.raises(EngineOverloaded):
        bench.scheduler.add(make_request(5))


def test_more_choices_than_can_ever_be_open_are_no_overload() -> None:
    bench = Bench(max_num_seqs=2, max_num_queued_requests=1)
    bench.scheduler.check_room(3, 0)
    with pytest.raises(RequestError) as refused:
        bench.scheduler.check_room(4, 0)
    assert refused.value.param == "n"


def test_the_queue_is_bounded_in_tokens_but_lets_one_in_that_finds_it_empty() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_tokens=10)
    bench.scheduler.check_room(1, 50)
    bench.scheduler.add(make_request(0, 8))
    bench.scheduler.check_room(1, 2)
    with pytest.raises(EngineOverloaded):
        bench.scheduler.add(make_request(1, 3))


def test_what_can_never_end_is_refused() -> None:
    bench = Bench(num_blocks=5)  # 20 positions, fewer than the model's 64
    bench.scheduler.add(make_request(0, 10, max_tokens=10))
    with pytest.raises(PromptTooLong) as refused:
        bench.scheduler.add(make_request(1, 10, max_tokens=11))
    assert refused.value.param == "max_tokens"
    with pytest.raises(RequestError):
        bench.scheduler.add(GenerationRequest(request_id="empty", prompt_token_ids=()))


def test_a_new_worker_goes_on_where_the_old_one_died() -> None:
    bench = Bench()
    sequences = [bench.scheduler.add(make_request(number, ignore_eos=True)) for number in range(3)]
    for _ in range(4):
        bench.step()
    known = [list(sequence.token_ids) for sequence in sequences]
    bench.scheduler.preempt_all()
    bench.worker.forget()
    plan, _ = bench.step()
    assert plan.ended == []
    assert [start.token_ids for start in plan.started] == known[: len(plan.started)]
