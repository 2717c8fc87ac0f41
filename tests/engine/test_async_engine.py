"""The engine in an event loop: streams, slow readers, clients that leave, and shutdown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
from engine_streams import collect, engine_on, text_of, until
from fake_worker import FakeWorker, Letters, expected_output, make_request

from engine import async_engine
from engine.async_engine import AsyncEngine
from engine.config import EngineConfig, ExitsConfig, ModelConfig
from engine.core import EngineCore
from engine.errors import EngineFailed, EngineOverloaded, EngineStopped, PromptTooLong
from engine.grammar.approver import Approver
from engine.inline_worker import InlineWorker
from engine.paced_slot import PacedSlot
from engine.plan import StepPlan, StepResult
from engine.request import FinishReason


@asynccontextmanager
async def running(worker: FakeWorker | None = None, **scheduler: int) -> AsyncIterator[AsyncEngine]:
    engine = engine_on(InlineWorker(lambda: worker or FakeWorker()), **scheduler)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until_idle(engine: AsyncEngine) -> None:
    """Wait until no request runs or waits."""
    while engine.stats().num_running or engine.stats().num_waiting:
        await asyncio.sleep(0.001)


async def test_concurrent_requests_stream_their_own_text() -> None:
    requests = [make_request(number) for number in range(12)]
    async with running(FakeWorker(num_blocks=16), max_num_seqs=5) as engine:
        assert engine.is_ready
        streams = await asyncio.gather(*(collect(engine, request) for request in requests))
        for request, outputs in zip(requests, streams, strict=True):
            tokens = expected_output(request)
            assert text_of(outputs) == Letters().text(tokens)
            assert tuple(t for output in outputs for t in output.token_ids) == tokens
            reasons = [output.finish_reason for output in outputs]
            assert reasons.count(None) == len(reasons) - 1
            assert reasons[-1] is not None
        assert engine.stats().num_blocks_used == 0


async def test_tokens_come_one_step_at_a_time() -> None:
    async with running(FakeWorker(max_draft_tokens=0, step_time_s=0.002)) as engine:
        outputs = await collect(engine, make_request(0, ignore_eos=True, max_tokens=10))
    assert len(outputs) > 3


async def test_a_step_is_rendered_while_the_worker_has_the_next_one() -> None:
    happened: list[str] = []

    class Worker(InlineWorker):
        def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
            happened.append("plan")
            return super().execute(plan)

    engine = engine_on(Worker(lambda: FakeWorker(max_draft_tokens=0)))
    await engine.start()
    request = make_request(0, ignore_eos=True, max_tokens=4)
    [slot] = engine.admit([request])
    slot.on_ready = lambda: happened.append("output")
    await until(lambda: happened.count("output") == 4)
    await engine.stop()
    # The last plan only tells the worker that the request has ended.
    assert happened == ["plan", *4 * ["plan", "output"]]


async def test_a_slow_reader_gets_everything_in_one_output() -> None:
    async with running() as engine:
        request = make_request(0, ignore_eos=True)
        async with aclosing(engine.generate(request)) as stream:
            outputs = [await anext(stream)]
            # Being idle would be too early: the last output is rendered after the blocks are freed.
            await until(lambda: engine.stats().finished_total[FinishReason.LENGTH] == 1)
            outputs += [output async for output in stream]
    assert len(outputs) == 2
    assert text_of(outputs) == Letters().text(expected_output(request))


async def test_closing_a_stream_aborts_its_request_only() -> None:
    async with running(FakeWorker(step_time_s=0.002)) as engine:
        leaving = engine.generate(make_request(0, ignore_eos=True, max_tokens=50))
        staying = asyncio.create_task(collect(engine, make_request(1)))
        await anext(leaving)
        await leaving.aclose()
        assert engine.stats().finished_total[FinishReason.ABORT] == 1
        assert text_of(await staying) == Letters().text(expected_output(make_request(1)))
        await until_idle(engine)
        assert engine.stats().num_blocks_used == 0


async def test_a_cancelled_reader_aborts_too() -> None:
    async with running(FakeWorker(step_time_s=0.002)) as engine:
        reader = asyncio.create_task(collect(engine, make_request(0, max_tokens=50)))
        await asyncio.sleep(0.01)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert engine.stats().num_blocks_used == 0


async def test_refusals_come_before_any_output() -> None:
    async with running(max_num_seqs=1, max_num_queued_requests=0) as engine:
        with pytest.raises(PromptTooLong):
            await anext(engine.generate(make_request(0, max_tokens=1000)))
        first = asyncio.create_task(collect(engine, make_request(1)))
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded):
            await anext(engine.generate(make_request(2)))
        await first
        assert await collect(engine, make_request(2))


async def test_admitted_requests_run_and_can_be_given_up_before_anybody_reads() -> None:
    async with running() as engine:
        engine.admit([make_request(0), make_request(1)])
        engine.abort("request-1")
        engine.abort("request-1")
        assert text_of(await collect(engine, make_request(0))) == Letters().text(
            expected_output(make_request(0))
        )
        await until_idle(engine)
        assert engine.stats().num_blocks_used == 0


async def test_who_has_started_is_known_to_whoever_limits_the_wait() -> None:
    async with running(FakeWorker(step_time_s=0.002), max_num_seqs=1) as engine:
        ids = [request.request_id for request in (make_request(0), make_request(1))]
        engine.admit([make_request(0, ignore_eos=True, max_tokens=50), make_request(1)])
        assert [engine.has_started(each) for each in ids] == [False, False]
        await until(lambda: engine.stats().num_running == 1)
        assert [engine.has_started(each) for each in ids] == [True, False]
        engine.abort(ids[1])
        assert engine.has_started(ids[1]), "it waits no longer"


async def test_a_mistake_of_the_engines_own_ends_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(FakeWorker(step_time_s=0.002)) as engine:
        readers = [
            asyncio.create_task(collect(engine, make_request(number, ignore_eos=True)))
            for number in range(2)
        ]
        await until(lambda: engine.stats().num_running == 2)
        monkeypatch.setattr(EngineCore, "schedule", lambda _: 1 // 0)
        for outcome in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(outcome, EngineFailed)
        assert isinstance(engine.fatal_error, ZeroDivisionError)
        assert not engine.is_ready


async def test_before_start_and_after_stop_nothing_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_closed, real = 0, Approver.close

    async def close(self: Approver) -> None:
        nonlocal num_closed
        num_closed += 1
        await real(self)

    monkeypatch.setattr(Approver, "close", close)
    engine = engine_on(InlineWorker(FakeWorker))
    with pytest.raises(EngineStopped):
        await anext(engine.generate(make_request(0)))
    await engine.start()
    await engine.stop()
    await engine.stop()
    assert num_closed > 0, "the process that tries structures would outlive the server"
    assert not engine.is_ready
    with pytest.raises(EngineStopped):
        await anext(engine.generate(make_request(0)))


async def test_stop_lets_open_requests_finish_in_time() -> None:
    engine = engine_on(InlineWorker(lambda: FakeWorker(step_time_s=0.002)))
    await engine.start()
    reader = asyncio.create_task(collect(engine, make_request(0, ignore_eos=True)))
    await asyncio.sleep(0.01)
    engine.admit([make_request(2)])
    engine.abort("request-2")  # one less, but not the last
    stopping = asyncio.create_task(engine.stop(timeout_s=10))
    await asyncio.sleep(0)
    with pytest.raises(EngineStopped):
        await anext(engine.generate(make_request(1)))
    assert (await reader)[-1].finish_reason is FinishReason.LENGTH
    await asyncio.wait_for(stopping, 5)  # not as long as it was given


async def test_stop_ends_what_does_not_finish_in_time() -> None:
    engine = engine_on(InlineWorker(lambda: FakeWorker(step_time_s=0.02)))
    await engine.start()
    readers = [
        asyncio.create_task(collect(engine, make_request(number, ignore_eos=True, max_tokens=50)))
        for number in range(3)
    ]
    await asyncio.sleep(0.05)
    await engine.stop(timeout_s=0.01)
    for outputs in await asyncio.gather(*readers):
        assert outputs[-1].finish_reason is FinishReason.ABORT
    assert engine.stats().finished_total[FinishReason.ABORT] == 3


async def test_whoever_rests_looks_whether_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "_CHECK_INTERVAL_S", 0.0)
    num_checks, real = 0, EngineCore.check

    def check(self: EngineCore) -> None:
        nonlocal num_checks
        num_checks += 1
        real(self)

    monkeypatch.setattr(EngineCore, "check", check)
    async with running() as engine:
        await until(lambda: num_checks > 0)
        before = num_checks
        await collect(engine, make_request(0))
        await until(lambda: num_checks > before)
        before = num_checks
        for _ in range(50):
            await asyncio.sleep(0)
        assert num_checks <= before + 1, "rest means rest"


async def test_info_limits_the_context_to_what_the_cache_holds() -> None:
    async with running(FakeWorker(num_blocks=5, block_size=4, max_model_len=64)) as engine:
        assert engine.info is not None
        assert engine.info.max_model_len == 20


async def test_equal_request_ids_do_not_mix_once_the_first_has_ended() -> None:
    async with running() as engine:
        for number in range(3):
            request = replace(make_request(number), request_id="same")
            outputs = await collect(engine, request)
            assert text_of(outputs) == Letters().text(expected_output(request))


async def test_with_a_target_for_the_time_between_tokens_they_come_one_by_one() -> None:
    config = EngineConfig(
        model=ModelConfig(directory="unused"), exits=ExitsConfig(target_itl_s=0.01)
    )
    engine = AsyncEngine(config, InlineWorker(lambda: FakeWorker(acceptance=1.0)), Letters())
    await engine.start()
    try:
        request = make_request(0, ignore_eos=True)
        slots = engine.admit([replace(request, request_id="unread")])
        assert [type(slot) for slot in slots] == [PacedSlot]
        streamed = await collect(engine, request)
        whole = await collect(engine, replace(request, request_id="whole", output_interval=0))
    finally:
        await engine.stop()
    assert text_of(streamed) == text_of(whole) == Letters().text(expected_output(request))
    assert [output.finish_reason for output in streamed[:-1]] == [None] * (len(streamed) - 1)
    assert streamed[-1].finish_reason is FinishReason.LENGTH
    assert len(whole) <= 2 < len(streamed), "the first output, then all others in one"
