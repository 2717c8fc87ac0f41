"""The events of a streamed response, each numbered and named by its type."""

from typing import Literal, TypeAlias

from pydantic import RootModel

from server.protocol.chat import TokenLogprob
from server.protocol.common import NamedEvent
from server.protocol.responses import OutputMessage, OutputText, Response


class ResponseEvent(NamedEvent):
    """What every event has."""

    sequence_number: int


class Lifecycle(ResponseEvent):
    """The response began, or ended."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class OutputItemEvent(ResponseEvent):
    """An item of the output began or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage


class ContentPartEvent(ResponseEvent):
    """A part of an item began or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDelta(ResponseEvent):
    """A piece of the text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(ResponseEvent):
    """The text is whole."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class StreamError(ResponseEvent):
    """The generation failed; `response.failed` follows."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None


AnyEvent: TypeAlias = (
    Lifecycle | OutputItemEvent | ContentPartEvent | TextDelta | TextDone | StreamError
)


class ResponseStreamEvent(RootModel[AnyEvent]):
    """One event of a streamed response."""
