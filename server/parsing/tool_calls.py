"""What all forms of tool calls share: content on one side, numbered calls on the other."""

import secrets
import string
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from server.parsing.call_scanner import CallScanner
from server.parsing.events import (
    ContentText,
    OutputEvent,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

_ALPHANUMERIC = string.ascii_letters + string.digits


class ToolParser(Protocol):
    """Finds the calls in one choice's answer."""

    def push(self, text: str) -> Iterator[OutputEvent]:
        """Yield the events of the next piece."""

    def finish(self) -> Iterator[OutputEvent]:
        """Yield the events that the end of the output brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """What a choice may call."""

    names: Collection[str]
    is_parallel: bool = True  # False: the first call counts, what follows is dropped
    new_call_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Make an id of nine letters and digits: Mistral's templates accept no others."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class CallWriter:
    """Writes content and calls of one choice as events; space around calls is dropped."""

    def __init__(self, options: ToolOptions) -> None:
        self.num_calls = 0
        self._options = options
        self._space: list[str] = []  # held back: a call may follow
        self._has_content = False
        self._is_open = False

    @property
    def is_closed(self) -> bool:
        """Whether all that follows is dropped."""
        return not self._options.is_parallel and self.num_calls > 0 and not self._is_open

    def scanner(self, *, is_name_first: bool = False) -> CallScanner:
        """Make a scanner for the next call."""
        return CallScanner(self._options.names, is_name_first=is_name_first)

    def content(self, text: str) -> Iterator[ContentText]:
        """Yield a piece of content; space at its end is held back, as a call may follow."""
        visible = text.rstrip()
        if visible:
            self._has_content = True
            yield ContentText("".join([*self._space, visible]))
            self._space.clear()
        if len(visible) < len(text):
            self._space.append(text[len(visible) :])

    def call(self, scanner: CallScanner) -> Iterator[OutputEvent]:
        """Yield what a scanner has found since the last time."""
        if scanner.name is None:
            return
        index = self.num_calls - 1
        if not self._is_open:
            index, self._is_open = self.num_calls, True
            self.num_calls += 1
            self._space.clear()
            yield ToolCallStart(index, self._options.new_call_id(), scanner.name)
        arguments = scanner.take_arguments()
        if arguments:
            yield ToolCallArguments(index, arguments)
        if scanner.is_complete or scanner.is_malformed:
            yield from self.end_call()

    def end_call(self) -> Iterator[ToolCallEnd]:
        """End the newest call, if it is open."""
        if self._is_open:
            self._is_open = False
            yield ToolCallEnd(self.num_calls - 1)

    def finish(self) -> Iterator[OutputEvent]:
        """End the output: an open call ends, and held-back space is content if no call came."""
        yield from self.end_call()
        if self._space and not self.num_calls:
            yield ContentText("".join(self._space))
        self._space.clear()
