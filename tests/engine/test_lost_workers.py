"""What becomes of streams whose engine loses its worker, once or again and again."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from engine_streams import collect, engine_on, text_of, until
from fake_worker import KILLER_ID, FakeWorker, Letters, expected_output, make_request
from mortal_worker import MortalWorker

from engine import supervisor
from engine.async_engine import AsyncEngine
from engine.errors import EngineFailed, ModelLoadError, PromptTooLong
from engine.request import FinishReason, GenerationRequest, Structure


def right_text(request: GenerationRequest) -> str:
    return Letters().text(expected_output(request))


async def assert_whole(engine: AsyncEngine, requests: Sequence[GenerationRequest]) -> None:
    """Send requests at once, and check that each gets all of its tokens and text."""
    streams = await asyncio.gather(*(collect(engine, request) for request in requests))
    for request, outputs in zip(requests, streams, strict=True):
        assert tuple(t for o in outputs for t in o.token_ids) == expected_output(request)
        assert text_of(outputs) == right_text(request)


@pytest.mark.parametrize("fails_at_step", [1, 2, 5, 9])
async def test_streams_survive_a_step_that_raises(fails_at_step: int) -> None:
    fake = FakeWorker(fails_at_step=fails_at_step)
    engine = engine_on(MortalWorker(fake))
    await engine.start()
    await assert_whole(engine, [make_request(number) for number in range(4)])
    assert engine.stats().worker_restarts_total == 1
    await engine.stop()


@pytest.mark.parametrize("dies_every", [4, 7, 20])
async def test_streams_survive_every_death_of_the_worker(dies_every: int) -> None:
    worker = MortalWorker(FakeWorker(max_model_len=256, num_blocks=256))
    worker.dies_every = dies_every
    engine = engine_on(worker)
    await engine.start()
    requests = [make_request(n, ignore_eos=True, max_tokens=120) for n in range(6)]
    await assert_whole(engine, requests)
    assert engine.stats().worker_restarts_total >= 2
    assert engine.stats().num_blocks_used == 0
    await engine.stop()


@pytest.mark.parametrize(
    ("was_killed", "num_deaths", "is_ended"), [(True, 6, False), (True, 10, True), (False, 3, True)]
)
async def test_a_stream_alone_with_dying_workers_is_ended_sooner_if_it_may_be_the_cause(
    was_killed: bool, num_deaths: int, is_ended: bool
) -> None:
    """The worker dies before the first token; kills are tolerated more often than crashes."""
    worker = MortalWorker(FakeWorker(step_time_s=0.2))
    worker.was_killed = was_killed
    engine = engine_on(worker)
    await engine.start()
    stream = asyncio.create_task(collect(engine, make_request(0)))
    for number in range(1, num_deaths + 1):
        await until(lambda n=number: worker.num_starts == n and worker.num_steps == n)  # type: ignore[misc]
        worker.fake.step_time_s = 0.2 if number < num_deaths else 0.0
        worker.death.set()
    outputs = await stream
    if is_ended:
        assert outputs[-1].finish_reason is FinishReason.ERROR
    else:
        assert text_of(outputs) == right_text(make_request(0))
    await engine.stop()


async def test_while_a_worker_loads_requests_queue_and_leave() -> None:
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    engine = engine_on(worker)
    await engine.start()
    worker.load_time_s = 0.2
    open_one = asyncio.create_task(collect(engine, make_request(0, ignore_eos=True)))
    await until(lambda: engine.stats().num_running > 0)
    worker.death.set()
    await until(lambda: engine.is_recovering)
    assert engine.is_ready
    leaving = asyncio.create_task(collect(engine, make_request(1)))
    newcomer = asyncio.create_task(collect(engine, make_request(2)))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert engine.stats().finished_total[FinishReason.ABORT] == 1
    assert text_of(await open_one) == right_text(make_request(0, ignore_eos=True))
    assert text_of(await newcomer) == right_text(make_request(2))
    assert not engine.is_recovering
    assert engine.stats().recovery_time_s_total > 0.1
    await engine.stop()


async def test_a_new_worker_has_the_structures_ready_before_its_first_step() -> None:
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    engine = engine_on(worker)
    await engine.start()
    structures = [Structure(kind="regex", source=source) for source in ("a", "b", "a")]
    requests = [
        make_request(n, ignore_eos=True, structure=structure)
        for n, structure in enumerate([*structures, None])
    ]
    streams = [asyncio.create_task(collect(engine, request)) for request in requests]
    await until(lambda: engine.stats().num_running == len(requests))
    before, prepared = len(worker.fake.plans), []
    worker.fake.prepare = lambda each: prepared.append((each.source, len(worker.fake.plans)))  # type: ignore[method-assign]
    worker.death.set()
    await asyncio.gather(*streams)
    assert sorted(source for source, _ in prepared) == ["a", "b"]
    num_plans = {count for _, count in prepared}
    assert len(num_plans) == 1
    first_of_new = worker.fake.plans[num_plans.pop()]
    assert before <= worker.fake.plans.index(first_of_new)
    assert len(first_of_new.started) == len(requests)
    await engine.stop()


async def test_a_new_worker_with_fewer_blocks_serves_what_fits_them() -> None:
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    worker.num_blocks_after = 7  # blocks of 4 tokens
    engine = engine_on(worker)
    await engine.start()
    fitting = [make_request(n, ignore_eos=True, max_tokens=20) for n in range(4)]
    outgrown = make_request(9, ignore_eos=True, max_tokens=40)
    streams = [asyncio.create_task(collect(engine, r)) for r in (*fitting, outgrown)]
    await until(lambda: engine.stats().num_running == 5)
    worker.death.set()
    *outputs, last = await asyncio.gather(*streams)
    for request, each in zip(fitting, outputs, strict=True):
        assert text_of(each) == right_text(request)
    right = right_text(outgrown)
    assert right.startswith(text_of(last))
    assert last[-1].finish_reason is FinishReason.ERROR
    assert "too small" in str(last[-1].error)
    assert engine.info is not None
    assert (engine.info.num_blocks, engine.info.max_model_len) == (7, 28)
    with pytest.raises(PromptTooLong, match="28 tokens"):
        await anext(engine.generate(replace(outgrown, request_id="again")))
    worker.num_blocks_after = 64  # and the memory comes back
    worker.death.set()
    await until(lambda: engine.stats().worker_restarts_total == 2)
    await assert_whole(engine, [replace(outgrown, request_id="again")])
    await engine.stop()


async def test_what_has_outgrown_a_new_worker_ends_at_once() -> None:
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    worker.num_blocks_after = 7  # blocks of 4 tokens
    engine = engine_on(worker)
    await engine.start()
    stream = asyncio.create_task(collect(engine, make_request(0, 30, ignore_eos=True)))
    await until(lambda: engine.stats().num_running == 1)
    worker.death.set()
    outputs = await asyncio.wait_for(stream, 30)
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert "too small" in str(outputs[-1].error)
    await engine.stop()


async def test_a_death_while_idle_is_noticed_and_repaired_before_anybody_asks() -> None:
    worker = MortalWorker(FakeWorker())
    engine = engine_on(worker)
    await engine.start()
    for restarts in (1, 2):
        worker.death.set()
        while engine.stats().worker_restarts_total < restarts:
            await asyncio.sleep(0.001)
        await assert_whole(engine, [make_request(restarts)])
    await engine.stop()


async def test_stopping_while_a_worker_loads_ends_what_is_open() -> None:
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    engine = engine_on(worker)
    await engine.start()
    worker.load_time_s = 60.0
    reader = asyncio.create_task(collect(engine, make_request(0, ignore_eos=True)))
    await until(lambda: engine.stats().num_running > 0)
    worker.death.set()
    await until(lambda: engine.is_recovering)
    await asyncio.wait_for(engine.stop(timeout_s=0.05), 30)
    assert (await reader)[-1].finish_reason is FinishReason.ABORT


async def test_a_request_that_kills_workers_fails_alone() -> None:
    engine = engine_on(MortalWorker(FakeWorker()))
    await engine.start()
    killer = GenerationRequest(request_id="killer", prompt_token_ids=(KILLER_ID, 5))
    requests = [make_request(number) for number in range(4)]
    streams = [asyncio.create_task(collect(engine, r)) for r in (*requests[:2], killer)]
    streams += [asyncio.create_task(collect(engine, r)) for r in requests[2:]]
    first, second, killed, third, fourth = await asyncio.gather(*streams)
    assert killed[-1].finish_reason is FinishReason.ERROR
    for request, outputs in zip(requests, (first, second, third, fourth), strict=True):
        assert text_of(outputs) == right_text(request)
    assert not engine.is_failed
    await engine.stop()


async def test_a_worker_that_cannot_be_had_again_ends_every_request_and_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_LONGEST_PAUSE_S", 0.001)
    worker = MortalWorker(FakeWorker(step_time_s=0.002))
    engine = engine_on(worker)
    await engine.start()
    worker.load_error = ModelLoadError("weights at /secret are gone")
    readers = [
        asyncio.create_task(collect(engine, make_request(number, ignore_eos=True)))
        for number in range(3)
    ]
    await until(lambda: engine.stats().num_running > 0)
    worker.death.set()
    for outcome in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(outcome, EngineFailed)
        assert "secret" not in str(outcome)
    assert engine.stats().finished_total[FinishReason.ERROR] == 3
    assert engine.is_failed
    assert not engine.is_ready
    assert "weights at /secret are gone" in str(engine.fatal_error)
    with pytest.raises(EngineFailed):
        await anext(engine.generate(make_request(9)))
    await engine.stop()


async def test_a_worker_that_dies_again_and_again_while_idle_ends_the_engine() -> None:
    worker = MortalWorker(FakeWorker())
    engine = engine_on(worker)
    await engine.start()
    while not engine.is_failed:
        worker.death.set()
        await asyncio.sleep(0.001)
    assert "5 workers in a row" in str(engine.fatal_error)
    assert engine.stats().worker_restarts_total == 4
    await engine.stop()


async def test_a_request_for_no_tokens_that_is_served_is_progress() -> None:
    worker = MortalWorker(FakeWorker())
    engine = engine_on(worker)
    await engine.start()
    for number in range(1, 7):  # five losses in a row end the engine
        worker.death.set()
        await until(lambda n=number: engine.is_failed or engine.stats().worker_restarts_total == n)  # type: ignore[misc]
        (output,) = await collect(engine, make_request(number, max_tokens=0))
        assert output.finish_reason is FinishReason.LENGTH
    await engine.stop()


async def test_ending_requests_that_kill_workers_is_progress() -> None:
    engine = engine_on(MortalWorker(FakeWorker()))
    await engine.start()
    for number in range(3):  # each kills two workers; five losses in a row end the engine
        killer = GenerationRequest(request_id=f"{number}", prompt_token_ids=(KILLER_ID, 5))
        (last,) = await collect(engine, killer)
        assert last.finish_reason is FinishReason.ERROR
    await engine.stop()


async def test_an_idle_worker_is_watched_by_one_task_only() -> None:
    num_begun = num_ended = 0

    class Watched(MortalWorker):
        async def watch(self) -> None:
            nonlocal num_begun, num_ended
            num_begun += 1
            try:
                await super().watch()
            finally:
                num_ended += 1

    engine = engine_on(Watched(FakeWorker()))
    await engine.start()
    for number in range(3):
        await until(lambda n=number: num_begun > n)  # type: ignore[misc]
        await collect(engine, make_request(number))
    await until(lambda: num_begun > 3)
    assert num_begun - num_ended == 1
    await engine.stop()
