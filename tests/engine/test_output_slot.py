"""Outputs that wait in a slot are merged; none is lost, and a slow reader causes no queue."""

from dataclasses import replace

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


def taken(slot: OutputSlot) -> RequestOutput:
    """Take the output that must be there."""
    output = slot.take()
    assert output is not None
    return output


def test_outputs_that_nobody_took_are_merged() -> None:
    slot = OutputSlot()
    slot.put(output(0))
    slot.put(output(1))
    slot.put(output(2, FinishReason.LENGTH))
    merged = taken(slot)
    assert (merged.text, merged.token_ids) == ("abc", (0, 1, 2))
    assert [entry.token_id for entry in merged.logprobs] == [0, 1, 2]
    assert (merged.num_output_tokens, merged.finish_reason) == (3, FinishReason.LENGTH)


def test_nothing_is_there_until_the_next_output() -> None:
    slot, calls = OutputSlot(), []
    slot.put(output(0))
    slot.on_ready = lambda: calls.append(slot.is_ready)
    assert slot.take() is not None
    assert slot.take() is None
    assert not slot.is_ready
    slot.put(output(1))
    assert calls == [True]
    assert taken(slot).text == "b"


@pytest.mark.parametrize(
    ("interval", "texts"),
    [(1, list("abcdefgh")), (3, ["a", "bcd", "efg", "h"]), (0, ["a", "bcdefgh"])],
)
def test_the_reader_is_called_when_it_is_worth_it(interval: int, texts: list[str]) -> None:
    slot, taken = OutputSlot(interval), []
    slot.on_ready = lambda: taken.append(slot.take())
    for token_id in range(8):
        slot.put(output(token_id, FinishReason.LENGTH if token_id == 7 else None))

    assert [each.text for each in taken] == texts
    assert [token_id for each in taken for token_id in each.token_ids] == list(range(8))


def test_what_need_not_wait_is_offered_first() -> None:
    slot, offered, ready = OutputSlot(interval=2), [], []
    takes = iter([True, True, False])
    slot.offer = lambda output: offered.append(output.text) or next(takes)
    slot.on_ready = lambda: ready.append(slot.take())
    for token_ids in ("a", "bc", "de", "f", "g"):
        slot.put(replace(output(0), text=token_ids, token_ids=tuple(map(ord, token_ids))))

    # "de" is refused, so the reader is called for it; "f" is less than the interval, and waits.
    assert offered == ["a", "bc", "de"]
    assert [each.text for each in ready] == ["de", "fg"]


def test_a_failure_comes_after_what_came_before_it() -> None:
    slot = OutputSlot(interval=0)
    slot.put(output(0))
    slot.take()
    slot.put(output(1))
    slot.fail(EngineFailed("gone"))

    assert taken(slot).text == "b"
    with pytest.raises(EngineFailed):
        slot.take()
