"""One slot per request: outputs merge, none is lost, a slow reader costs no queue."""

import asyncio

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
