"""Filling in an event shape gives the same bytes as encoding the event."""

import json

import pytest

from server.protocol.chat import ChatChunkChoice, ChatCompletionChunk, Delta
from server.render.event import event
from server.render.event_shape import EventShape, TextTemplate


def chunk(text: str) -> ChatCompletionChunk:
    choice = ChatChunkChoice(index=3, delta=Delta(content=text))
    return ChatCompletionChunk(id="a", created=1, model='m"\\é', choices=[choice])


@pytest.mark.parametrize("text", ["a", " \n\r\t", '"}\\', "é😀\u2028\x00", TextTemplate.HOLE])
def test_a_filled_template_is_the_event_of_the_chunk_with_that_text(text):
    filled = TextTemplate(event(chunk(TextTemplate.HOLE))).fill(text)

    assert filled == event(chunk(text))
    data = filled.removeprefix(b"data: ").removesuffix(b"\n\n")
    assert json.loads(data)["choices"][0]["delta"] == {"content": text}
    assert b"\n" not in data


@pytest.mark.parametrize("model", ["m", 'a"\\é', "\ue001", '"created":-1,'])
def test_a_filled_shape_is_the_event_of_the_chunk_with_that_id_and_time(model):
    def make(head):
        choice = ChatChunkChoice(index=0, delta=Delta(role="assistant", content=""))
        return ChatCompletionChunk(**head, choices=[choice])

    filled = EventShape(make, model).fill("chatcmpl-1f", 1_800_000_000)

    assert filled == event(make({"id": "chatcmpl-1f", "created": 1_800_000_000, "model": model}))
