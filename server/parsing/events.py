"""The events into which a model's output text is parsed."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """A piece of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The beginning of a call; its arguments follow."""

    index: int  # 0, 1, … within one choice
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of the JSON text of the newest call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The end of the newest call: it is whole, or the output broke off within it."""

    index: int


OutputEvent: TypeAlias = (
    ReasoningText | ContentText | ToolCallStart | ToolCallArguments | ToolCallEnd
)
