"""The offline engine: every request gets its one right output, whatever is shared or preempted."""

import pytest
from fake_worker import POISON_ID, FakeWorker, expected_output, make_request

from engine.config import EngineConfig, ModelConfig, SchedulerConfig
from engine.errors import PromptTooLong, UnsupportedOption
from engine.offline import OfflineEngine
from engine.plan import StepPlan, StepResult
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest


def engine_on(worker: FakeWorker, **scheduler: int) -> OfflineEngine:
    config = EngineConfig(
        model=ModelConfig(directory="unused"), scheduler=SchedulerConfig(**scheduler)
    )
    return OfflineEngine(config, worker)


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("max_draft_tokens", [0, 3])
@pytest.mark.parametrize("num_blocks", [8, 200])
def test_outputs_do_not_depend_on_drafts_batch_or_memory(
    acceptance: float, max_draft_tokens: int, num_blocks: int
) -> None:
    worker = FakeWorker(
        num_blocks=num_blocks, acceptance=acceptance, max_draft_tokens=max_draft_tokens
    )
    requests = [make_request(number, num_prompt=1 + number % 9) for number in range(20)]
    results = engine_on(worker, max_num_seqs=8, max_num_batched_tokens=12).generate(requests)
    assert [result.token_ids for result in results] == [expected_output(r) for r in requests]


def test_more_requests_than_the_servers_queue_takes() -> None:
    requests = [make_request(number) for number in range(8)]
    results = engine_on(FakeWorker(), max_num_queued_requests=2).generate(requests)
    assert len(results) == 8


def test_so_many_at_once_as_asked() -> None:
    class WatchedWorker(FakeWorker):
        most = 0

        def execute(self, plan: StepPlan) -> StepResult:
            self.most = max(self.most, len(plan.rows))
            return super().execute(plan)

    requests = [make_request(number) for number in range(8)]
    for asked, most in ((2, 2), (None, 4), (9, 4)):
        worker = WatchedWorker()
        engine_on(worker, max_num_seqs=4).generate(requests, max_num_seqs=asked)
        assert worker.most == most


def test_logprobs_trace_and_figures_agree_with_the_tokens() -> None:
    worker = FakeWorker(acceptance=0.6)
    results = engine_on(worker).generate(
        [make_request(number, num_logprobs=0) for number in range(6)]
    )
    for result in results:
        figures = result.draft_figures
        assert [entry.token_id for entry in result.logprobs] == list(result.token_ids)
        assert [entry.token_id for entry in result.trace] == list(result.token_ids)
        assert sum(figures.acceptance_histogram) == figures.num_steps
        assert sum(figures.accepted_by_layer.values()) == figures.num_accepted_tokens
        assert sum(figures.drafted_by_layer.values()) == figures.num_draft_tokens
    assert any(result.draft_figures.num_accepted_tokens for result in results)
    assert any(entry.rejected for result in results for entry in result.trace)


def test_a_request_without_early_exit_never_drafts() -> None:
    worker = FakeWorker(acceptance=1.0)
    plain = make_request(0, early_exit=EarlyExitOptions(enabled=False))
    (result,) = engine_on(worker).generate([plain])
    assert result.token_ids == expected_output(plain)
    assert result.draft_figures.num_steps == 0
    assert all(row.max_draft_tokens == 0 for plan in worker.plans for row in plan.rows)


def test_a_failing_row_ends_alone() -> None:
    poisoned = GenerationRequest(request_id="bad", prompt_token_ids=(POISON_ID, 2))
    bad, good = engine_on(FakeWorker()).generate([poisoned, make_request(1)])
    assert (bad.finish_reason, bad.error, bad.token_ids) == (FinishReason.ERROR, "poisoned", ())
    assert good.token_ids == expected_output(make_request(1))


def test_what_can_never_run_is_refused() -> None:
    engine = engine_on(FakeWorker(max_model_len=16))
    with pytest.raises(PromptTooLong):
        engine.generate([make_request(0, num_prompt=10, max_tokens=7)])
    with pytest.raises(UnsupportedOption):
        engine.generate([make_request(0, max_tokens=1, stop=("a",))])


def test_the_worker_is_told_of_every_end() -> None:
    worker = FakeWorker()
    engine_on(worker).generate([make_request(number) for number in range(5)])
    assert not worker.starts
