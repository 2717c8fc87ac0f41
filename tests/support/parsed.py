"""Gathers a choice's events as a client would."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.parsing.events import (
    ContentText,
    OutputEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from server.parsing.output_parser import OutputFormat


@dataclass
class Parsed:
    """The parts of a choice."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # (name, arguments)


def gathered(events: Sequence[OutputEvent]) -> Parsed:
    """Merge all events, and assert that calls begin, go on and end in order."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    num_ended = 0
    for event in events:
        match event:
            case ReasoningText(text):
                reasoning.append(text)
            case ContentText(text):
                content.append(text)
            case ToolCallStart(index, call_id, name):
                assert index == len(calls) == num_ended
                assert call_id
                calls.append((name, []))
            case ToolCallArguments(index, text):
                assert index == len(calls) - 1 == num_ended
                calls[index][1].append(text)
            case ToolCallEnd(index):
                assert index == num_ended
                num_ended += 1
    assert num_ended == len(calls)
    assert all([*reasoning, *content]), "no event is empty"
    named = [(name, "".join(arguments)) for name, arguments in calls]
    return Parsed("".join(reasoning), "".join(content), named)


def parsed(output_format: OutputFormat, pieces: Sequence[str]) -> Parsed:
    """Return what a new parser makes of these pieces of text."""
    parser = output_format.parser()
    events = [event for piece in pieces for event in parser.push(piece)]
    return gathered([*events, *parser.finish()])
