"""How events reach the client: at once while it reads, merged and in order when it does not."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine
from watched_generations import started

from engine.request import FinishReason, RequestOutput
from server.answer_events import AnswerEvents
from server.delivery import Delivery
from server.protocol.completions import CompletionRequest
from server.render.common import AnswerFrame
from server.render.completions import CompletionRenderer


class Connection:
    """A connection that takes pieces while `can_take_piece` is set."""

    def __init__(self) -> None:
        self.can_take_piece = True
        self.pieces: list[bytes] = []

    def send_piece(self, piece: bytes) -> None:
        assert self.can_take_piece
        assert piece, "an empty chunk ends a chunked body"
        self.pieces.append(piece)


def delivery(engine: FakeEngine, connection: Connection | None, count: int = 1) -> Delivery:
    frame = AnswerFrame(
        answer_id="a",
        created=0,
        model="m",
        tokenizer=engine.tokenizer,  # type: ignore[arg-type]
        num_choices=count,
        num_prompt_tokens=1,
        max_draft_tokens=0,
    )
    body = CompletionRequest(model="m", prompt="p")
    events = AnswerEvents(CompletionRenderer(body, frame))
    return Delivery(started(engine, count), events, connection)  # type: ignore[arg-type]


async def sent_by_task(stream: Delivery) -> list[bytes]:
    return [*[piece async for piece in stream.body()], stream.last_piece]


def texts(events: bytes) -> list[str]:
    data = [each.removeprefix("data: ") for each in events.decode().split("\n\n") if each]
    chunks = [json.loads(each) for each in data if each != "[DONE]"]
    return ["".join(choice["text"] for choice in chunk["choices"]) for chunk in chunks]


async def test_a_reader_that_keeps_up_gets_all_but_the_end_at_once() -> None:
    connection = Connection()
    by_task = await sent_by_task(delivery(FakeEngine("abcdef"), connection))

    assert [texts(piece) for piece in by_task] == [["f", ""]]
    assert b"".join(by_task).endswith(b"data: [DONE]\n\n")
    assert [texts(piece) for piece in connection.pieces] == [["a"], ["b"], ["c"], ["d"], ["e"]]


async def test_what_has_nothing_to_show_yet_sends_nothing() -> None:
    connection = Connection()
    await sent_by_task(delivery(FakeEngine("é!"), connection))  # a token is half a character

    assert [texts(piece) for piece in connection.pieces] == [["é"]]


async def test_a_failure_comes_after_what_was_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompletionRenderer, "closing_chunks", lambda _: 1 // 0)
    (piece,) = await sent_by_task(delivery(FakeEngine("a"), None))
    said, _, error, done = piece.decode().split("\n\n")[:-1]

    assert '"text":"a"' in said
    assert '"code":"internal_error"' in error
    assert done == "data: [DONE]"


async def test_several_choices_go_the_same_way() -> None:
    connection = Connection()
    by_task = await sent_by_task(delivery(FakeEngine("abcd"), connection, 3))

    said = "".join(text for piece in (*by_task, *connection.pieces) for text in texts(piece))
    assert sorted(said) == sorted(3 * "abcd")
    assert len(connection.pieces) >= 3


async def test_behind_another_server_the_task_sends_everything() -> None:
    by_task = await sent_by_task(delivery(FakeEngine("abc"), None))

    assert [texts(piece) for piece in by_task] == [["a"], ["b"], ["c", ""]]


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_streams_opening_waits_for_no_output_but_goes_out_with_one(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    opening = b'data: {"choices": []}\n\n'
    monkeypatch.setattr(CompletionRenderer, "opening_chunks", lambda _: [opening])
    stream = delivery(FakeEngine("a", token_delay_s=60), None)
    slot, body = stream._generations._open[0].slot, stream.body()
    if is_there:
        slot.put(output(0))
    pieces = [await anext(body)]
    if not is_there:
        slot.put(output(0))
        pieces.append(await anext(body))
    await body.aclose()

    assert b"".join(pieces).startswith(opening)
    assert [texts(piece) for piece in pieces] == ([["", "x"]] if is_there else [[""], ["x"]])


async def test_for_a_reader_that_does_not_read_outputs_merge_and_nothing_overtakes() -> None:
    connection, engine = Connection(), FakeEngine("a", token_delay_s=60)
    stream = delivery(engine, connection)
    slot = stream._generations._open[0].slot
    body = stream.body()
    slot.put(output(0))
    first = await anext(body)
    # The client stops reading: the task stays busy with the first piece, however many follow.
    for number in range(1, 5000):
        slot.put(output(number))
    assert connection.pieces == [], "it would have overtaken the first piece"
    second = await anext(body)
    assert texts(first) == ["x"]
    assert texts(second) == [4999 * "x"], "one piece, whatever its length"

    connection.can_take_piece = False
    waiting = asyncio.ensure_future(anext(body, None))
    await asyncio.sleep(0)
    slot.put(output(5000))
    slot.put(output(5001, FinishReason.LENGTH))
    assert await waiting is None
    assert texts(stream.last_piece) == ["x", "x", ""]
    assert connection.pieces == []


async def test_what_takes_long_to_render_is_rendered_on_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, chunks = [], CompletionRenderer.chunks

    def rendered(*args: Any) -> Iterator[Any]:
        threads.append(threading.current_thread())
        return chunks(*args)

    monkeypatch.setattr(CompletionRenderer, "chunks", rendered)
    monkeypatch.setattr("server.delivery.is_long", lambda _: True)
    connection, engine = Connection(), FakeEngine("a", token_delay_s=60)
    stream = delivery(engine, connection)
    body = stream.body()
    waiting = asyncio.ensure_future(anext(body))
    await asyncio.sleep(0)
    stream._generations._open[0].slot.put(output(0))
    assert texts(await waiting) == ["x"]
    assert connection.pieces == []
    assert threading.current_thread() not in threads
    await body.aclose()


def output(number: int, reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(
        request_id="0",
        text="x",
        token_ids=(7,),
        num_prompt_tokens=1,
        num_output_tokens=number + 1,
        finish_reason=reason,
    )
