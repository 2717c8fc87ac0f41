"""An answer's generations: their order, back-pressure, and their common end."""

import asyncio
from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from watched_generations import generations, started, watches

from engine.errors import (
    DeadEnd,
    DeadlinePassed,
    EngineFailed,
    EngineOverloaded,
    EngineStopped,
    QueuedTooLong,
    RequestFailed,
)
from engine.request import FinishReason, RequestOutput
from server.answer import gather_choices
from server.deadlines import Deadlines


@pytest.mark.parametrize("most_at_once", [None, 2])
@pytest.mark.parametrize("count", [1, 3])
async def test_every_output_of_every_generation_comes(count: int, most_at_once: int | None) -> None:
    engine = FakeEngine("abc")
    made = started(engine, count, most_at_once=most_at_once)
    choices = await gather_choices(made)

    assert [choice.text for choice in choices] == ["abc"] * count
    assert engine.aborted == []
    assert [watch.text for watch in watches(made)] == ["abc"] * count
    assert [watch.ends for watch in watches(made)] == [[None]] * count, "each ends once"


async def test_choices_are_in_order_whichever_ends_first() -> None:
    made = started(engine := FakeEngine("a", token_delay_s=60), 2)
    reader = asyncio.create_task(gather_choices(made))
    await asyncio.sleep(0)
    for index in (1, 0):
        output = next(engine._outputs(engine.requests[index]))
        made._open[index].slot.put(replace(output, text=str(index)))
        await asyncio.sleep(0)

    assert [choice.text for choice in await reader] == ["0", "1"]


async def test_they_interleave() -> None:
    made = started(FakeEngine("abc", token_delay_s=0.005), 2)
    order = []
    while not made.is_over:
        await made.ready()
        order += [index for index, _ in made.take()]

    assert order != sorted(order)


async def test_a_receiver_that_waits_gets_outputs_without_a_task_being_woken() -> None:
    made, received = started(FakeEngine("abcd"), 1), []

    def receive(index: int, output: RequestOutput) -> bool:
        received.append(output.text)
        return len(received) < 3

    await made.wait(receive)

    assert received == ["a", "b", "c"]
    assert watches(made)[0].text == "abc"
    assert [output.text for _, output in made.take()] == ["c"], "what it did not want"
    await made.ready()
    assert [output.text for _, output in made.take()] == ["d"]
    assert received == ["a", "b", "c"], "what comes later is not offered"


async def test_a_receiver_that_waits_gets_what_comes_in_intervals_as_well() -> None:
    made = started(engine := FakeEngine("abcdef", token_delay_s=60), 1, interval=2)
    received, slot = [], made._open[0].slot

    def receive(index: int, output: RequestOutput) -> bool:
        received.append(output.text)
        return output.finish_reason is None

    waiting = asyncio.create_task(made.wait(receive))
    await asyncio.sleep(0)
    *outputs, last = engine._outputs(engine.requests[0])
    for output in outputs:
        slot.put(output)

    assert received == ["a", "bc", "de"]
    slot.put(last)
    await waiting
    assert [output.text for _, output in made.take()] == ["f"]


async def test_nothing_overtakes_what_a_receiver_did_not_want() -> None:
    made, offered = started(engine := FakeEngine("abc", token_delay_s=60), 1), []

    def refuse(index: int, output: RequestOutput) -> bool:
        offered.append(output.text)
        return False

    waiting = asyncio.create_task(made.wait(refuse))
    await asyncio.sleep(0)
    first, second, _ = engine._outputs(engine.requests[0])
    made._open[0].slot.put(first)
    made._open[0].slot.put(second)  # before the reader runs
    await waiting

    assert offered == ["a"]
    assert [output.text for _, output in made.take()] == ["a", "b"]


async def test_what_comes_while_the_reader_is_busy_merges() -> None:
    made = started(engine := FakeEngine("abcd"), 1)
    slot = made._open[0].slot
    await made.ready()
    assert [output.text for _, output in made.take()] == ["a"]
    engine.abort("0")  # from here on the test plays the engine
    outputs = list(engine._outputs(engine.requests[0]))
    for output in outputs[1:]:
        slot.put(output)

    assert made.ready().done()
    made.wake()  # again, as a deadline may
    assert [output.text for _, output in made.take()] == ["bcd"]
    assert made.is_over


async def test_a_receiver_that_fails_ends_its_own_answer_alone() -> None:
    engine = FakeEngine("abc")
    bad, good = started(engine, 1), started(engine, 1)

    def fail(index: int, output: RequestOutput) -> bool:
        raise RuntimeError("cannot render")

    whole = asyncio.create_task(gather_choices(good))
    await bad.wait(fail)
    with pytest.raises(RuntimeError, match="cannot render"):
        bad.take()
    bad.close()

    assert (await whole)[0].text == "abc"


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_it_aborts_all(count: int) -> None:
    engine = FakeEngine("abcdef", token_delay_s=0.005)
    made = started(engine, count, most_at_once=2)
    await made.ready()
    made.take()
    made.close()
    made.close()

    assert len(engine.aborted) == min(count, 2), "as many as were begun"
    assert not engine.open_ids
    assert made.is_over
    assert all(watch.ends == [None] for watch in watches(made))


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_reader_aborts_all(count: int) -> None:
    engine = FakeEngine("abcdef", token_delay_s=10)
    reader = asyncio.create_task(gather_choices(started(engine, count)))
    await asyncio.sleep(0.02)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)

    assert len(engine.aborted) == count


@pytest.mark.parametrize("refusal", [EngineOverloaded("full"), EngineStopped("stop")])
def test_a_refusal_comes_at_once(refusal: Exception) -> None:
    made = generations(FakeEngine(refusal=refusal), 3)
    with pytest.raises(type(refusal)):
        made.start(Deadlines(0, 0))

    assert made._observer.num_refused == 3  # type: ignore[attr-defined]
    assert made._record.num_generations == 3


@pytest.mark.parametrize(
    ("reason", "error"), [(FinishReason.ERROR, RequestFailed), (FinishReason.ABORT, EngineStopped)]
)
async def test_an_unhappy_end_of_one_ends_all(reason: FinishReason, error: type[Exception]) -> None:
    engine = FakeEngine("abcdef", finish_with=reason, failure_after=2)
    with pytest.raises(error):
        await gather_choices(started(engine, 2))
    assert not engine.open_ids


async def test_a_failure_comes_after_what_came_before_it() -> None:
    made = started(FakeEngine("abc", failure=EngineFailed("gone"), failure_after=1), 1)
    await made.ready()
    assert [output.text for _, output in made.take()] == ["a"]
    await made.ready()
    with pytest.raises(EngineFailed):
        made.take()

    assert watches(made)[0].ends == [FinishReason.ERROR]


async def test_the_failure_of_one_comes_after_what_another_has_said() -> None:
    engine = FakeEngine("abc", token_delay_s=60)
    made = started(engine, 2)
    first, too_late, _ = engine._outputs(engine.requests[0])
    made._open[0].slot.put(first)
    made._open[1].slot.fail(EngineFailed("gone"))
    assert [output.text for _, output in made.take()] == ["a"]
    made._open[0].slot.put(too_late)
    with pytest.raises(EngineFailed):
        made.take()
    assert not made.is_over
    made.close()
    assert made.is_over


async def test_the_first_failure_is_the_one_that_is_told() -> None:
    made = generations(FakeEngine("a", token_delay_s=60), 2)
    made.start(Deadlines(0, 0.01))
    made._open[1].slot.fail(EngineFailed("gone"))
    await asyncio.sleep(0.03)
    with pytest.raises(EngineFailed):
        made.take()


async def test_a_request_that_failed_says_why() -> None:
    made = started(engine := FakeEngine("a", token_delay_s=60), 1)
    last = replace(next(engine._outputs(engine.requests[0])), finish_reason=FinishReason.ERROR)
    made._open[0].slot.put(replace(last, error="it no longer fits"))
    with pytest.raises(RequestFailed, match="it no longer fits"):
        made.take()


async def test_an_answer_that_is_closed_has_no_deadlines() -> None:
    made, deadlines = generations(FakeEngine("a", token_delay_s=60), 1), Deadlines(60, 60)
    made.start(deadlines)
    assert deadlines._timers
    made.close()
    assert not deadlines._timers


async def test_a_dead_end_is_the_requests_own_fault() -> None:
    engine = FakeEngine("abcdef", finish_with=FinishReason.DEAD_END, failure_after=2)
    with pytest.raises(DeadEnd, match=r"^allowed_token_ids: ") as caught:
        await gather_choices(started(engine, 1, demanding="allowed_token_ids"))
    assert caught.value.param == "allowed_token_ids"


async def test_a_passed_deadline_ends_all_but_what_is_there() -> None:
    engine = FakeEngine("abc", token_delay_s=0.05)
    made = generations(engine, 2)
    made.start(Deadlines(0, 0.08))
    with pytest.raises(DeadlinePassed):
        await gather_choices(made)
    assert len(engine.aborted) == 2

    quick = generations(FakeEngine("abc"), 1)
    quick.start(Deadlines(0, 0.03))
    await asyncio.sleep(0)
    slot = quick._open[0].slot
    slot.put(replace(next(FakeEngine("a")._outputs(quick._requests[0]))))
    await asyncio.sleep(0.05)
    assert [output.text for _, output in quick.take()] == ["a"], "nobody had looked in time"
    assert quick.is_over


async def test_only_what_has_not_started_has_queued_too_long() -> None:
    engine = FakeEngine("abc", token_delay_s=0.03)
    made = generations(engine, 1)
    made.start(Deadlines(0.01, 0))
    assert (await gather_choices(made))[0].text == "abc"

    engine.has_started = lambda _: False  # type: ignore[method-assign]
    made = generations(engine, 1)
    made.start(Deadlines(0.01, 0))
    with pytest.raises(QueuedTooLong):
        await gather_choices(made)


async def test_choices_wait_for_no_turn_beyond_their_requests_first() -> None:
    engine = FakeEngine("abc", token_delay_s=0.03)
    engine.has_started = "0".__eq__  # type: ignore[method-assign]
    made = generations(engine, 2)
    made.start(Deadlines(0.01, 0))
    assert [choice.text for choice in await gather_choices(made)] == ["abc", "abc"]
