"""Event shapes are made once, and belong to whoever keeps them."""

from server.protocol.chat import ChatChunkChoice, ChatCompletionChunk, Delta
from server.render.event import event
from server.render.event_shapes import EventShapes


def chunk(head, index):
    choice = ChatChunkChoice(index=index, delta=Delta(content="a"))
    return ChatCompletionChunk(**head, choices=[choice])


def test_a_shape_is_made_once_for_what_it_is_about():
    shapes, others = EventShapes(), EventShapes()

    shape = shapes.get(chunk, "m", 1)

    assert shapes.get(chunk, "m", 1) is shape
    assert others.get(chunk, "m", 1) is not shape
    for model, index in (("m", 2), ("n", 1)):
        filled = shapes.get(chunk, model, index).fill("id", 5)
        assert filled == event(chunk({"id": "id", "created": 5, "model": model}, index))
