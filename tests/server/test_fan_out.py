import asyncio
from contextlib import aclosing

import pytest
from fake_engine import FakeEngine

from engine.errors import DeadEnd, EngineOverloaded, EngineStopped, RequestFailed
from engine.request import FinishReason, GenerationRequest
from server.fan_out import fan_out


def generations(engine: FakeEngine, count: int):
    return [
        engine.generate(GenerationRequest(request_id=str(index), prompt_token_ids=(1,)))
        for index in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3])
async def test_every_output_of_every_generation_comes_in_order(count):
    engine = FakeEngine("abc")
    texts = dict.fromkeys(range(count), "")
    async for index, output in fan_out(generations(engine, count)):
        texts[index] += output.text

    assert set(texts.values()) == {"abc"}
    assert engine.aborted == []


async def test_generations_interleave():
    engine = FakeEngine("abc", token_delay_s=0.005)

    order = [index async for index, _ in fan_out(generations(engine, 2))]

    assert order != sorted(order)


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_it_aborts_all(count):
    engine = FakeEngine("abcdef", token_delay_s=0.005)
    async with aclosing(fan_out(generations(engine, count))) as outputs:
        await anext(outputs)

    assert sorted(engine.aborted) == [str(index) for index in range(count)]
    assert not engine.open_ids


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_reader_aborts_all(count):
    engine = FakeEngine("abcdef", token_delay_s=10)
    reader = asyncio.create_task(anext(fan_out(generations(engine, count))))
    await asyncio.sleep(0.02)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await asyncio.sleep(0)

    assert len(engine.aborted) == count


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("refusal", [EngineOverloaded("full"), EngineStopped("stop")])
async def test_a_refusal_comes_before_any_output(count, refusal):
    with pytest.raises(type(refusal)):
        await anext(fan_out(generations(FakeEngine(refusal=refusal), count)))


@pytest.mark.parametrize(
    ("reason", "error"), [(FinishReason.ERROR, RequestFailed), (FinishReason.ABORT, EngineStopped)]
)
async def test_an_unhappy_end_of_one_ends_all(reason, error):
    engine = FakeEngine("abcdef", finish_with=reason, failure_after=2)
    with pytest.raises(error):
        async for _ in fan_out(generations(engine, 2)):
            pass
    assert not engine.open_ids


async def test_a_dead_end_is_the_requests_own_fault():
    engine = FakeEngine("abcdef", finish_with=FinishReason.DEAD_END, failure_after=2)
    with pytest.raises(DeadEnd, match=r"^allowed_token_ids: ") as caught:
        async for _ in fan_out(generations(engine, 1), demanding="allowed_token_ids"):
            pass
    assert caught.value.param == "allowed_token_ids"
