"""Scheduling scenarios: budgets, order, preemption, drafts, and refusals."""

from dataclasses import replace
from typing import Any

import pytest
from fake_worker import FakeWorker, make_request

from engine.config import SchedulerConfig
from engine.errors import (
    EngineOverloaded,
    PromptTooLong,
    RequestError,
    TooManyChoices,
    UnsupportedOption,
    WorkerLost,
)
from engine.limits import ModelLimits
from engine.plan import RowResult, StepPlan, StepResult
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest, SamplingParams
from engine.scheduler import Committed, Scheduler
from engine.sequence import Sequence


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
        max_model_len: int = 64,
        runs_ahead: bool = False,
        **policy: Any,
    ) -> None:
        self.worker = FakeWorker(
            num_blocks=num_blocks,
            max_draft_tokens=max_draft_tokens,
            acceptance=acceptance,
            max_model_len=max_model_len,
            runs_ahead=runs_ahead,
        )
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_queued_requests=max_num_queued_requests,
            max_num_queued_tokens=max_num_queued_tokens,
            **policy,
        )
        self.scheduler = Scheduler(config, ModelLimits.of(self.worker.info))

    def step(self) -> tuple[StepPlan, list[Committed]]:
        plan = self.scheduler.schedule()
        assert plan is not None
        self.scheduler.check()
        committed = self.scheduler.commit(plan, self.worker.execute(plan))
        self.scheduler.check()
        return plan, committed

    def lose_worker(self) -> None:
        """Replace the worker while no step is in flight."""
        guilty = self.scheduler.lose_worker(None, WorkerLost("it is gone"))
        assert guilty == [], "no step was in flight"
        self.worker.forget()

    def finish(self, request: GenerationRequest) -> Sequence:
        """Run a request to its end."""
        sequence = self.scheduler.add(request)
        while not sequence.is_finished:
            self.step()
        return sequence


def rows_of(plan: StepPlan) -> list[tuple[int, int]]:
    """Return (sequence id, number of tokens) of every row."""
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
    # Each has one block, and one block is left for each running sequence to grow into.
    assert [row.sequence_id for row in plan.rows] == [0, 1]


def test_a_sequence_alone_may_use_every_block() -> None:
    bench = Bench(num_blocks=4, max_num_batched_tokens=64)
    sequence = bench.scheduler.add(make_request(0, 10, ignore_eos=True, max_tokens=6))
    while not sequence.is_finished:
        bench.step()
    assert bench.scheduler.num_preemptions == 0


@pytest.mark.parametrize(
    ("prompts", "num_rows"),
    [((1190,), 1), ((800, 388), 2), ((800, 389), 1)],  # 298; 200 and 97; 200 and 98 blocks
)
def test_a_hundredth_of_many_blocks_is_kept_free_if_anybody_runs(
    prompts: tuple[int, ...], num_rows: int
) -> None:
    bench = Bench(num_blocks=300, max_model_len=1200, max_num_batched_tokens=1200)
    for number, num_prompt in enumerate(prompts):
        bench.scheduler.add(make_request(number, num_prompt, max_tokens=2))
    assert len(bench.step()[0].rows) == num_rows


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (EarlyExitOptions(), 3),
        (EarlyExitOptions(max_draft_tokens=1), 1),
        (EarlyExitOptions(max_draft_tokens=5), 3),
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


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_where_passes_run_ahead_there_is_room_for_the_next_token(runs_ahead: bool) -> None:
    """Run a prompt of 3 tokens with 6 tokens of output, in blocks of 4."""
    bench = Bench(runs_ahead=runs_ahead)
    sequence = bench.scheduler.add(make_request(0, 3, ignore_eos=True, max_tokens=6))
    sizes = []
    while not sequence.is_finished:
        row = bench.step()[0].rows[0]
        sizes.append((row.start, len(row.block_table)))
        assert row.max_draft_tokens == 0
    first, *others = sizes
    assert first == (0, 1)
    # Positions 3 and 7 end a block; the token after position 7 is the last and needs no slot.
    expected = {3: 2, 4: 2, 5: 2, 6: 2, 7: 2} if runs_ahead else {3: 1, 4: 2, 5: 2, 6: 2, 7: 2}
    assert dict(others) == expected


@pytest.mark.parametrize(
    "wants", [{"runs_ahead": True}, {"max_draft_tokens": 3, "acceptance": 0.3}], ids=str
)
def test_room_beyond_the_newest_token_never_costs_a_preemption(wants: dict[str, Any]) -> None:
    # Two sequences of 16 tokens fit 8 blocks of 4 exactly; with more room they would not.
    bench = Bench(num_blocks=8, **wants)
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
    assert bench.scheduler.num_blocks_used == 5  # the last one holds the older one's drafts
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


def test_nobody_is_told_to_wait_longer_than_clients_do() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_requests=200)
    bench.scheduler.add_all([make_request(number) for number in range(201)])
    with pytest.raises(EngineOverloaded) as refused:
        bench.scheduler.add(make_request(201))
    assert refused.value.retry_after_s == 120


@pytest.mark.parametrize("limits", [{"max_num_seqs": 2}, {"max_num_batched_tokens": 2}], ids=str)
def test_more_choices_than_can_ever_be_open_are_no_overload(limits: dict[str, Any]) -> None:
    bench = Bench(max_num_queued_requests=1, **limits)
    bench.scheduler.check_room(3, 0)
    with pytest.raises(TooManyChoices):
        bench.scheduler.check_room(4, 0)


def test_the_queue_is_bounded_in_tokens_but_lets_one_in_that_finds_it_empty() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_tokens=10)
    bench.scheduler.check_room(1, 50)
    bench.scheduler.add(make_request(0, 8))
    bench.scheduler.check_room(1, 2)
    with pytest.raises(EngineOverloaded):
        bench.scheduler.add(make_request(1, 3))


def test_a_queue_of_short_prompts_may_be_full_as_well() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_requests=1, max_num_queued_tokens=100)
    bench.scheduler.add_all([make_request(number) for number in range(2)])
    with pytest.raises(EngineOverloaded):
        bench.scheduler.add(make_request(2))


def test_requests_that_come_together_find_the_queue_empty_together() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_tokens=10)
    assert len(bench.scheduler.add_all([make_request(number, 8) for number in range(3)])) == 3
    with pytest.raises(EngineOverloaded):
        bench.scheduler.add_all([make_request(number, 1) for number in (3, 4)])
    assert bench.scheduler.num_waiting == 3, "none of them was queued"


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
    bench.lose_worker()
    plan, _ = bench.step()
    assert plan.ended == []
    assert [start.token_ids for start in plan.started] == known[: len(plan.started)]


def request_of(
    name: str, prompt: list[int], salt: str = "", priority: int = 0, **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"max_tokens": 1, "ignore_eos": True} | sampling),
        cache_salt=salt,
        priority=priority,
    )


PROMPT = [2 + (i * 5) % 30 for i in range(24)]


@pytest.mark.parametrize(
    ("num_prompt", "num_cached"),
    [(1, 0), (4, 0), (5, 4), (7, 4), (8, 4), (9, 8), (12, 8), (13, 12)],
)
def test_a_repeated_prompt_is_found_but_for_its_last_token(
    num_prompt: int, num_cached: int
) -> None:
    bench = Bench()
    first = bench.finish(request_of("a", PROMPT[:num_prompt]))
    second = bench.finish(request_of("b", PROMPT[:num_prompt]))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, num_cached)
    assert first.token_ids == second.token_ids
    assert bench.scheduler.num_prefix_queries == 2 * num_prompt
    assert bench.scheduler.num_prefix_hits == num_cached
    assert bench.scheduler.num_prefix_misses == 2 * num_prompt - num_cached


def test_only_the_common_beginning_is_found() -> None:
    bench = Bench()
    bench.finish(request_of("a", PROMPT))
    other = [*PROMPT[:9], 39, *PROMPT[10:]]
    assert bench.finish(request_of("b", other)).num_cached_tokens == 8


def test_output_is_found_by_the_next_turn() -> None:
    bench = Bench(max_draft_tokens=3, acceptance=0.5)
    first = bench.finish(request_of("a", PROMPT[:6], max_tokens=12))
    # 18 tokens, of which the last is not computed: four full blocks.
    second = bench.finish(request_of("b", [*first.token_ids, 5, 6]))
    assert second.num_cached_tokens == 16


def test_another_salt_finds_nothing() -> None:
    bench = Bench()
    bench.finish(request_of("a", PROMPT, salt="mine"))
    assert bench.finish(request_of("b", PROMPT)).num_cached_tokens == 0
    assert bench.finish(request_of("c", PROMPT, salt="yours")).num_cached_tokens == 0
    assert bench.finish(request_of("d", PROMPT, salt="mine")).num_cached_tokens == 20


def test_a_dead_end_takes_nothing_from_those_who_begin_alike() -> None:
    bench = Bench(max_num_batched_tokens=64)
    bench.finish(request_of("a", PROMPT))
    ending = bench.scheduler.add(request_of("b", PROMPT))
    plan = bench.scheduler.schedule()
    assert plan is not None
    bench.worker.execute(plan)
    dead = [RowResult(row.sequence_id, [], error="none", is_dead_end=True) for row in plan.rows]
    bench.scheduler.commit(plan, StepResult(step_id=plan.step_id, rows=dead))
    assert ending.is_finished
    assert bench.finish(request_of("c", PROMPT)).num_cached_tokens == 20


def test_without_prefix_caching_nothing_is_kept() -> None:
    bench = Bench(prefix_caching=False)
    bench.finish(request_of("a", PROMPT))
    assert bench.finish(request_of("b", PROMPT)).num_cached_tokens == 0
    assert (bench.scheduler.num_prefix_queries, bench.scheduler.num_blocks_cached) == (0, 0)


def test_nothing_is_found_before_it_is_computed() -> None:
    bench = Bench(max_num_batched_tokens=64)
    sequences = [bench.scheduler.add(request_of(name, PROMPT)) for name in "ab"]
    plan, _ = bench.step()  # both run in one step: neither finds anything computed
    assert rows_of(plan) == [(0, 24), (1, 24)]
    assert sequences[0].token_ids == sequences[1].token_ids
    assert bench.scheduler.num_blocks_cached == 6


def test_a_prompt_in_flight_is_shared_as_far_as_it_has_come() -> None:
    bench = Bench(max_num_batched_tokens=10)
    bench.scheduler.add(request_of("a", PROMPT))
    bench.step()
    plan = bench.scheduler.schedule()
    assert plan is not None
    second = bench.scheduler.add(request_of("b", PROMPT))
    bench.scheduler.commit(plan, bench.worker.execute(plan))
    bench.step()
    # 20 tokens were computed before its first step; the third chunk ran in that same step.
    assert second.num_cached_tokens == 20


def test_cached_blocks_count_as_free_and_give_way() -> None:
    bench = Bench(num_blocks=6)
    bench.finish(request_of("a", PROMPT[:20]))
    assert bench.scheduler.num_blocks_used == 0
    assert bench.scheduler.num_blocks_cached == 5
    other = [39 - token for token in PROMPT]
    assert bench.finish(request_of("b", other[:23])).finish_reason is FinishReason.LENGTH
    assert bench.finish(request_of("c", PROMPT[:20])).num_cached_tokens == 0


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    bench = Bench(num_blocks=6)
    for number in range(2):
        bench.scheduler.add(make_request(number, 7, ignore_eos=True, max_tokens=14))
    while bench.scheduler.num_preemptions == 0:
        bench.step()
    while bench.scheduler.num_waiting:
        plan, _ = bench.step()
    (row,) = (row for row in plan.rows if row.sequence_id == 1)
    assert row.start > 0
    # Hits and misses are counted when a request first runs, not when it resumes.
    assert bench.scheduler.num_prefix_hits == 0
    assert bench.scheduler.num_prefix_misses == 2 * 7


def test_a_row_that_fails_takes_its_blocks_out_of_the_cache() -> None:
    bench = Bench(max_num_batched_tokens=8)
    sequence = bench.scheduler.add(request_of("a", PROMPT))
    bench.step()
    assert bench.scheduler.num_blocks_cached == 2
    plan = bench.scheduler.schedule()
    assert plan is not None
    failed = [RowResult(row.sequence_id, [], error="not a number") for row in plan.rows]
    bench.scheduler.commit(plan, StepResult(step_id=plan.step_id, rows=failed))
    assert sequence.finish_reason is FinishReason.ERROR
    assert bench.scheduler.num_blocks_cached == 0


def test_a_dead_worker_takes_the_cache_with_it() -> None:
    bench = Bench()
    bench.finish(request_of("a", PROMPT))
    running = bench.scheduler.add(request_of("b", PROMPT, max_tokens=4))
    bench.step()
    bench.lose_worker()
    bench.scheduler.check()
    assert bench.scheduler.num_blocks_cached == 0
    plan, _ = bench.step()
    assert plan.rows[0].start == 0
    assert running.num_computed_tokens > 0


def test_an_abort_in_flight_leaves_what_was_computed_before() -> None:
    bench = Bench(max_num_batched_tokens=8)
    sequence = bench.scheduler.add(request_of("a", PROMPT))
    bench.step()
    plan = bench.scheduler.schedule()
    assert plan is not None
    bench.scheduler.abort(sequence)
    bench.scheduler.commit(plan, bench.worker.execute(plan))
    assert bench.finish(request_of("b", PROMPT)).num_cached_tokens == 8


def test_lower_priorities_run_first_and_are_preempted_last() -> None:
    bench = Bench(num_blocks=6, max_num_seqs=2, policy="priority")
    names = {}
    for name, priority in (("a", 5), ("b", 0), ("c", -1), ("d", 0)):
        request = request_of(name, PROMPT[:4], priority=priority, max_tokens=14)
        names[bench.scheduler.add(request).sequence_id] = name
    order: list[str] = []
    while bench.scheduler.num_running or bench.scheduler.num_waiting:
        plan, _ = bench.step()
        order += [names[start.sequence_id] for start in plan.started]
    assert "".join(dict.fromkeys(order)) == "cbda"
    assert bench.scheduler.num_preemptions > 0
    assert order.count("c") == 1


@pytest.mark.parametrize(
    ("change", "num_cached"),
    [
        ({"sampling": SamplingParams(max_tokens=0)}, 20),
        ({"sampling": SamplingParams(max_tokens=0, num_prompt_logprobs=1)}, 0),
        ({"pooling": "mean"}, 0),
        ({"pooling": "last"}, 20),
    ],
)
def test_who_needs_every_position_reads_no_cache_but_fills_it(
    change: dict[str, Any], num_cached: int
) -> None:
    bench = Bench()
    first = bench.finish(replace(request_of("a", PROMPT), **change))
    assert first.finish_reason is FinishReason.LENGTH
    assert bench.finish(replace(request_of("b", PROMPT), **change)).num_cached_tokens == num_cached
    assert bench.scheduler.num_prefix_queries == (2 * len(PROMPT) if num_cached else 0)
    assert bench.scheduler.num_prefix_hits == num_cached
    assert bench.scheduler.num_prefix_misses == 2 * len(PROMPT) - num_cached
    assert bench.finish(request_of("c", [*PROMPT, 3])).num_cached_tokens == len(PROMPT)


def test_what_was_read_of_a_prompt_is_not_read_again() -> None:
    bench = Bench()
    request = request_of("a", PROMPT, max_tokens=6, num_prompt_logprobs=1)
    sequence = bench.scheduler.add(replace(request, pooling="mean"))
    while sequence.num_output_tokens < 2:
        bench.step()
    bench.lose_worker()
    plan, _ = bench.step()
    (start,) = plan.started
    assert (start.num_prompt_logprobs, start.pooling) == (None, None)


@pytest.mark.parametrize("priority", [1, -1])
def test_a_priority_is_refused_where_it_means_nothing(priority: int) -> None:
    bench = Bench()
    with pytest.raises(UnsupportedOption) as refused:
        bench.scheduler.add(request_of("a", PROMPT, priority=priority))
    assert refused.value.param == "priority"
