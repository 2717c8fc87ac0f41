"""The outputs of requests: texts, stop strings, finish reasons, and counts."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
from engine_driver import EngineDriver
from fake_worker import (
    EOS_ID,
    POISON_ID,
    FakeWorker,
    Letters,
    expected_embedding,
    expected_output,
    expected_prompt_logprobs,
    make_request,
)

from engine.config import SchedulerConfig
from engine.errors import EngineOverloaded, PromptTooLong
from engine.output_slot import merged
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest

LETTERS = Letters()
TEXT = LETTERS.text(expected_output(make_request(0, ignore_eos=True)))


def driver_on(worker: FakeWorker | None = None, **scheduler: int) -> EngineDriver:
    return EngineDriver(worker or FakeWorker(), SchedulerConfig(**scheduler))


def test_every_request_gets_its_text_and_one_last_output() -> None:
    driver = driver_on(FakeWorker(num_blocks=10), max_num_seqs=4)
    requests = [make_request(number) for number in range(8)]
    driver.run(requests)
    for request in requests:
        tokens = expected_output(request)
        assert driver.token_ids(request.request_id) == tokens
        assert driver.text(request.request_id) == LETTERS.text(tokens)
        last = driver.outputs[request.request_id][-1]
        ended_by_eos = tokens[-1] == EOS_ID
        expected = FinishReason.STOP if ended_by_eos else FinishReason.LENGTH
        assert driver.finish_reasons(request.request_id) == [expected]
        assert last.num_output_tokens == len(tokens)
        assert last.draft_figures is not None
    assert driver.core.num_open == 0


@pytest.mark.parametrize("place", range(6, 12))  # within a step and at its end
@pytest.mark.parametrize("acceptance", [0.0, 0.7, 1.0])
def test_a_stop_string_cuts_text_and_tokens_at_the_same_place_with_any_drafts(
    acceptance: float, place: int
) -> None:
    driver = driver_on(FakeWorker(acceptance=acceptance))
    tokens = expected_output(make_request(0, ignore_eos=True))
    text = LETTERS.text(tokens)
    stop = text[place : place + 3]
    num_kept = next(n for n in range(20) if stop in LETTERS.text(tokens[:n]))
    driver.run([make_request(0, ignore_eos=True, stop=(stop,), num_logprobs=0)])
    last = driver.outputs["request-0"][-1]
    assert driver.text("request-0") == text[: text.index(stop)]
    assert driver.token_ids("request-0") == tokens[:num_kept]
    assert tuple(entry.token_id for entry in last.logprobs) == last.token_ids
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, stop)
    assert last.num_output_tokens == num_kept
    stats = driver.core.stats()
    assert stats.generation_tokens_total == num_kept
    assert stats.num_blocks_used == 0


def test_a_stop_string_wins_over_the_length_limit_reached_in_the_same_step() -> None:
    tokens = expected_output(make_request(0, ignore_eos=True))
    stop = LETTERS.text(tokens[7:9])
    driver = driver_on(FakeWorker(acceptance=1.0))
    driver.run([make_request(0, ignore_eos=True, max_tokens=9, stop=(stop,))])
    last = driver.outputs["request-0"][-1]
    assert (last.finish_reason, last.stop_reason) == (FinishReason.STOP, stop)


@pytest.mark.parametrize("is_included", [False, True])
def test_the_token_that_ends_the_output_is_text_only_when_asked_for(is_included: bool) -> None:
    tokens = expected_output(make_request(0, ignore_eos=True))
    end = tokens.index(tokens[6])
    driver = driver_on()
    driver.run(
        [
            make_request(
                0,
                ignore_eos=True,
                stop_token_ids=(tokens[end],),
                include_stop_str_in_output=is_included,
            )
        ]
    )
    assert driver.token_ids("request-0") == tokens[: end + 1]
    assert driver.text("request-0") == LETTERS.text(tokens[: end + is_included])
    assert driver.outputs["request-0"][-1].stop_reason == tokens[end]


def test_logprobs_and_trace_come_with_their_tokens_when_asked_for() -> None:
    driver = driver_on(FakeWorker(acceptance=0.5))
    asked = make_request(0, num_logprobs=0, early_exit=EarlyExitOptions(return_trace=True))
    driver.run([asked, make_request(1)])
    for output in driver.outputs["request-0"]:
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
        assert [entry.token_id for entry in output.trace] == list(output.token_ids)
    assert all(not (o.logprobs or o.trace) for o in driver.outputs["request-1"])


def test_a_row_that_fails_ends_its_request_alone() -> None:
    driver = driver_on()
    poisoned = GenerationRequest(request_id="bad", prompt_token_ids=(POISON_ID, 5))
    driver.run([make_request(0), poisoned])
    (last,) = driver.outputs["bad"]
    assert (last.finish_reason, last.error) == (FinishReason.ERROR, "poisoned")
    assert driver.token_ids("request-0") == expected_output(make_request(0))


def test_abort_is_idempotent_in_every_state() -> None:
    driver = driver_on(max_num_seqs=1)
    for number in range(3):
        driver.core.add_all([make_request(number, ignore_eos=True)])
    driver.core.abort("request-2")  # waiting
    driver.send()
    driver.core.abort("request-0")  # in flight
    driver.core.abort("request-0")
    driver.receive()
    driver.run_to_the_end()
    driver.core.abort("request-1")  # finished
    driver.core.abort("never seen")
    assert driver.outputs.keys() == {"request-1"}
    ends = {FinishReason.LENGTH: 1, FinishReason.ABORT: 2}
    assert driver.core.stats().finished_total == dict.fromkeys(FinishReason, 0) | ends
    driver.core.check()


def test_drafts_of_a_request_that_was_aborted_meanwhile_are_not_counted() -> None:
    driver = driver_on(FakeWorker(acceptance=1.0))
    driver.core.add_all([make_request(0, ignore_eos=True)])
    for _ in range(3):
        driver.send()
        driver.receive()
    before = driver.core.stats()
    driver.send()  # with drafts
    driver.core.abort("request-0")
    driver.receive()
    assert driver.core.stats().draft_tokens_total == before.draft_tokens_total > 0
    assert driver.core.stats().steps_total == before.steps_total + 1


def test_aborted_between_commit_and_render_and_added_again() -> None:
    driver = driver_on()
    driver.core.add_all([make_request(0)])
    driver.send()
    driver.receive()
    driver.core.abort("request-0")
    driver.core.add_all([make_request(0)])
    driver.render()
    assert not driver.outputs
    driver.run_to_the_end()
    assert driver.token_ids("request-0") == expected_output(make_request(0))


def test_end_all_ends_each_open_request_once_even_if_it_had_just_ended() -> None:
    driver = driver_on()
    driver.core.add_all([make_request(0, max_tokens=1)])
    driver.core.add_all([make_request(1)])
    driver.send()
    driver.receive()  # request 0 has its last token, which is not rendered yet
    outputs = driver.core.end_all(FinishReason.ERROR, "broken")
    assert {output.request_id for output in outputs} == {"request-0", "request-1"}
    assert {(o.finish_reason, o.error) for o in outputs} == {(FinishReason.ERROR, "broken")}
    driver.render()
    assert not driver.outputs
    assert driver.core.num_open == 0
    driver.core.check()


def test_a_refused_request_leaves_nothing_behind() -> None:
    driver = driver_on(max_num_seqs=1, max_num_queued_requests=1)
    driver.core.add_all([make_request(0)])
    with pytest.raises(EngineOverloaded):
        driver.core.add_all([make_request(1), make_request(2)])
    with pytest.raises(EngineOverloaded):
        driver.core.check_room(2, 0)
    assert driver.core.stats().refused_total == 4
    assert driver.core.num_open == 1
    driver.run_to_the_end()
    assert driver.core.num_open == 0


def test_requests_are_added_all_or_none() -> None:
    driver = driver_on()
    with pytest.raises(PromptTooLong):
        driver.core.add_all([make_request(0), make_request(1, max_tokens=1000)])
    assert driver.core.num_open == 0
    driver.core.add_all([make_request(0), make_request(1)])
    driver.run_to_the_end()
    assert driver.token_ids("request-1") == expected_output(make_request(1))


def test_a_request_has_started_once_it_has_run() -> None:
    driver = driver_on(max_num_seqs=1)
    driver.core.add_all([make_request(0), make_request(1)])
    driver.send()
    assert driver.core.has_started("request-0")
    assert not driver.core.has_started("request-1")
    driver.run_to_the_end()
    assert driver.core.has_started("request-1"), "one that is not open waits for nothing"


def test_stats_are_a_copy_and_add_up() -> None:
    driver = driver_on(FakeWorker(num_blocks=10, acceptance=0.6), max_num_seqs=4)
    before = driver.core.stats()
    requests = [make_request(number) for number in range(6)]
    driver.run(requests)
    stats = driver.core.stats()
    assert before.steps_total == 0
    assert stats.prompt_tokens_total == sum(len(r.prompt_token_ids) for r in requests)
    assert stats.prompt_tokens_computed_total == stats.prompt_tokens_total  # all differ
    assert stats.generation_tokens_total == sum(len(expected_output(r)) for r in requests)
    assert sum(stats.finished_total.values()) == 6
    assert stats.steps_total == len(driver.worker.plans)
    assert sum(stats.accepted_per_position) == stats.accepted_tokens_total
    assert sum(stats.accepted_by_layer.values()) == stats.accepted_tokens_total
    assert sum(stats.drafted_by_layer.values()) == stats.draft_tokens_total
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
    figures = [driver.outputs[r.request_id][-1].draft_figures for r in requests]
    assert sum(f.num_steps for f in figures if f) == stats.drafts_total


def test_the_last_output_says_how_long_a_request_waited_and_how_often_it_was_preempted() -> None:
    driver = driver_on(FakeWorker(num_blocks=6))
    driver.run([make_request(number, 7, ignore_eos=True, max_tokens=14) for number in range(2)])
    first, second = (driver.outputs[f"request-{number}"][-1] for number in range(2))
    assert min(first.queue_s, second.queue_s) > 0.0
    assert first.num_preemptions == 0
    assert second.num_preemptions == driver.core.stats().preemptions_total > 0


def test_a_request_for_no_tokens_ends_once_its_prompt_is_computed() -> None:
    driver = driver_on(max_num_batched_tokens=4)
    driver.run([make_request(0, 9, max_tokens=0)])
    (output,) = driver.outputs["request-0"]
    assert (output.text, output.token_ids) == ("", ())
    assert output.finish_reason is FinishReason.LENGTH
    assert (output.num_prompt_tokens, output.num_output_tokens) == (9, 0)
    assert sum(row.num_tokens for plan in driver.worker.plans for row in plan.rows) == 9
    assert driver.core.stats().num_blocks_used == 0


@pytest.mark.parametrize("max_tokens", [0, 1, 12])
@pytest.mark.parametrize("num_batched", [1, 5, 64])
def test_scores_of_a_prompt_come_once_with_the_first_output(
    num_batched: int, max_tokens: int
) -> None:
    driver = driver_on(max_num_batched_tokens=num_batched, max_num_seqs=4)
    requests = [
        make_request(number, 1 + 6 * number, max_tokens=max_tokens, num_prompt_logprobs=0)
        for number in range(4)
    ]
    driver.run(requests)
    for request in requests:
        first, *others = driver.outputs[request.request_id]
        assert first.prompt_logprobs == expected_prompt_logprobs(request)
        assert not any(output.prompt_logprobs for output in others)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_the_last_output_has_the_embedding(
    pooling: Literal["mean", "last"], max_tokens: int
) -> None:
    driver = driver_on(max_num_batched_tokens=7)
    requests = [
        make_request(number, 3 + 6 * number, max_tokens=max_tokens, pooling=pooling)
        for number in range(4)
    ]
    driver.run(requests)
    for request in requests:
        embeddings = [output.embedding for output in driver.outputs[request.request_id]]
        assert embeddings[-1] == expected_embedding(request)
        assert not any(embeddings[:-1])


@pytest.mark.parametrize("num_steps", [1, 3, 6, 12])
def test_prompts_are_read_again_when_the_worker_dies(num_steps: int) -> None:
    driver = driver_on(max_num_batched_tokens=5)
    requests = [
        make_request(0, 17, num_prompt_logprobs=0, pooling="mean"),
        make_request(1, 17, num_prompt_logprobs=0, pooling="last", max_tokens=0),
    ]
    for request in requests:
        driver.add(request)
    for _ in range(num_steps):
        driver.send()
        driver.receive()
    driver.crash()
    driver.run_to_the_end()
    for request in requests:
        outputs = driver.outputs[request.request_id]
        scores = tuple(score for output in outputs for score in output.prompt_logprobs)
        assert scores == expected_prompt_logprobs(request)
        assert outputs[-1].embedding == expected_embedding(request)
        assert driver.token_ids(request.request_id) == expected_output(request)


@pytest.mark.parametrize(
    "ending",
    [
        *({"max_tokens": number} for number in range(10, 21)),
        *({"stop": (TEXT[place : place + 3],)} for place in range(6, 12)),
        *({"stop_token_ids": (token,)} for token in expected_output(make_request(0))[4:10]),
    ],
    ids=str,
)
def test_tokens_one_by_one_are_the_same_output_in_smaller_pieces(ending: dict[str, Any]) -> None:
    traced = EarlyExitOptions(return_trace=True)
    request = make_request(0, ignore_eos=True, num_logprobs=0, early_exit=traced, **ending)
    whole, pieces = (driver_on(FakeWorker(acceptance=1.0)) for _ in range(2))
    render = pieces.core.render
    pieces.core.render = partial(render, one_by_one=True)  # type: ignore[method-assign]
    for driver in (whole, pieces):
        driver.run([request])
    outputs, expected = pieces.outputs["request-0"], whole.outputs["request-0"]
    assert merged(outputs) == merged(expected)
    assert len(outputs) > len(expected)
    counts = [output.num_output_tokens for output in outputs]
    assert counts == [
        sum(len(each.token_ids) for each in outputs[:end]) for end in range(1, len(outputs) + 1)
    ]
    assert all(len(output.token_ids) == 1 for output in outputs[:-1])


def test_who_wants_all_tokens_at_once_gets_no_smaller_pieces() -> None:
    driver = driver_on(FakeWorker(acceptance=1.0))
    render = driver.core.render
    driver.core.render = partial(render, one_by_one=True)  # type: ignore[method-assign]
    driver.run([replace(make_request(0, ignore_eos=True), output_interval=0)])
    assert any(len(output.token_ids) > 1 for output in driver.outputs["request-0"][:-1])
