"""One slot per request: outputs merge, none is lost, a slow reader costs no queue."""

import asyncio

import pytest

from engine.errors import EngineFailed
from engine.output_slot import OutputSlot
from engine.request import FinishReason, RequestOutput, TokenLogprobs


def output(token_id: int, reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        text=chr(97 + token_id),
        token_ids=(token_id,),
        logprobs=(TokenLogprobs(token_id=token_id, logprob=-1.0),),
        num_prompt_tokens=3,
        num_output_tokens=token_id + 1,
        finish_reason=reason,
    )


async def test_outputs_that_nobody_took_are_merged() -> None:
    slot = OutputSlot()
    slot.put(output(0))
    slot.put(output(1))
    slot.put(output(2, FinishReason.LENGTH))
    merged = await slot.take()
    assert (merged.text, merged.token_ids) == ("abc", (0, 1, 2))
    assert [entry.token_id for entry in merged.logprobs] == [0, 1, 2]
    assert (merged.num_output_tokens, merged.finish_reason) == (3, FinishReason.LENGTH)


async def test_take_waits_for_the_next_output() -> None:
    slot = OutputSlot()
    slot.put(output(0))
    await slot.take()
    taking = asyncio.create_task(slot.take())
    await asyncio.sleep(0)
    assert not taking.done()
    slot.put(output(1))
    assert (await taking).text == "b"


@pytest.mark.parametrize(
    ("interval", "texts"),
    [(1, list("abcdefgh")), (3, ["a", "bcd", "efg", "h"]), (0, ["a", "bcdefgh"])],
)
async def test_the_reader_is_woken_when_it_is_worth_it(interval: int, texts: list[str]) -> None:
    slot, taken = OutputSlot(interval), []

    async def read() -> None:
        while not taken or taken[-1].finish_reason is None:
            taken.append(await slot.take())

    reading = asyncio.create_task(read())
    for token_id in range(8):
        slot.put(output(token_id, FinishReason.LENGTH if token_id == 7 else None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await reading

    assert [each.text for each in taken] == texts
    assert [token_id for each in taken for token_id in each.token_ids] == list(range(8))


async def test_a_failure_comes_after_what_came_before_it() -> None:
    slot = OutputSlot(interval=0)
    slot.put(output(0))
    await slot.take()
    slot.put(output(1))
    slot.fail(EngineFailed("gone"))

    assert (await slot.take()).text == "b"
    with pytest.raises(EngineFailed):
        await slot.take()
