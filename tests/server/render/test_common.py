"""What renderers share."""

import json

import pytest

from server.protocol.chat import ChatChunkChoice, ChatCompletionChunk, Delta
from server.render.common import TextTemplate
from server.render.event import event


def chunk(text: str) -> ChatCompletionChunk:
    choice = ChatChunkChoice(index=3, delta=Delta(content=text))
    return ChatCompletionChunk(id="a", created=1, model='m"\\é', choices=[choice])


@pytest.mark.parametrize("text", ["a", " \n\r\t", '"}\\', "é😀\u2028\x00", TextTemplate.HOLE])
def test_a_filled_template_is_the_event_of_the_chunk_with_that_text(text):
    filled = TextTemplate(chunk(TextTemplate.HOLE)).fill(text)

    assert filled == event(chunk(text))
    data = filled.removeprefix(b"data: ").removesuffix(b"\n\n")
    assert json.loads(data)["choices"][0]["delta"] == {"content": text}
    assert b"\n" not in data
