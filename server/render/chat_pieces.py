"""Turns the events of a choice's output into the deltas and the message of a chat answer."""

from collections.abc import Iterable

from server.parsing.events import (
    ContentText,
    OutputEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
)
from server.protocol.chat import (
    AnswerMessage,
    Delta,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)


def delta_of(events: Iterable[OutputEvent]) -> Delta:
    """Combine the events of one piece into what they add to the message."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, ToolCallDelta] = {}
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallStart(index, call_id, name):
                function = FunctionDelta(name=name)
                calls[index] = ToolCallDelta(
                    index=index, id=call_id, type="function", function=function
                )
            case ToolCallArguments(index, text):
                call = calls.setdefault(index, ToolCallDelta(index=index, function=FunctionDelta()))
                call.function.arguments += text
    thought = "".join(reasoning) or None
    return Delta(
        content="".join(content) or None,
        reasoning=thought,
        reasoning_content=thought,
        tool_calls=list(calls.values()) or None,
    )


def message_of(events: Iterable[OutputEvent]) -> AnswerMessage:
    """Combine all events of one choice into its message; calls without text have null content."""
    whole = delta_of(events)
    calls = [
        ToolCall(
            id=call.id or "",
            function=FunctionCall(name=call.function.name or "", arguments=call.function.arguments),
        )
        for call in whole.tool_calls or []
    ]
    return AnswerMessage(
        content=whole.content if calls else whole.content or "",
        reasoning=whole.reasoning,
        reasoning_content=whole.reasoning_content,
        tool_calls=calls or None,
    )
