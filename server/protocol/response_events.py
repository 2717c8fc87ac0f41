"""The events of a streamed response, each numbered and named by its type."""

from typing import Literal, TypeAlias

from pydantic import RootModel

from server.protocol.chat import TokenLogprob
from server.protocol.common import NamedEvent
from server.protocol.responses import OutputItem, OutputText, ReasoningText, Response


class ResponseEvent(NamedEvent):
    """The fields that every event has."""

    sequence_number: int


class Lifecycle(ResponseEvent):
    """The start or the end of the response."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class OutputItemEvent(ResponseEvent):
    """The start of an output item, or its end, with all of it."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class ContentPartEvent(ResponseEvent):
    """The start of a part of an item, or its end, with all of it."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDelta(ResponseEvent):
    """A piece of the text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(ResponseEvent):
    """The end of the text, with all of it."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(ResponseEvent):
    """A piece of the reasoning."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDone(ResponseEvent):
    """The end of the reasoning, with all of it."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDelta(ResponseEvent):
    """A piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = (
        "response.function_call_arguments.delta"
    )
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(ResponseEvent):
    """The end of a call's arguments, with all of them."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    item_id: str
    output_index: int
    name: str
    arguments: str


class StreamError(ResponseEvent):
    """A failure of the generation; `response.failed` follows."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None


ItemEvent: TypeAlias = (
    OutputItemEvent
    | ContentPartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
AnyEvent: TypeAlias = Lifecycle | ItemEvent | StreamError


class ResponseStreamEvent(RootModel[AnyEvent]):
    """One event of a streamed response."""
