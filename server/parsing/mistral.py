"""Mistral's forms: `[TOOL_CALLS][{"name": …, "arguments": …}, …]` and `[TOOL_CALLS]f{…}`."""

from collections.abc import Generator, Iterator
from enum import Enum, auto

from server.parsing.call_scanner import CallScanner
from server.parsing.events import OutputEvent
from server.parsing.tag import TagFinder
from server.parsing.tool_calls import CallWriter, ToolOptions

BEGIN = "[TOOL_CALLS]"


class _State(Enum):
    OUTSIDE = auto()
    BEGUN = auto()  # right after the tag
    LIST = auto()  # between the calls of a list
    CALL = auto()


class MistralParser:
    """Finds the calls in one choice's answer."""

    def __init__(self, options: ToolOptions) -> None:
        self._writer = CallWriter(options)
        self._begin = TagFinder(BEGIN)
        self._state = _State.OUTSIDE
        self._scanner: CallScanner | None = None
        self._is_list = False
        self._lead: list[str] = []  # text before a call; becomes content if that is not one

    def push(self, text: str) -> Iterator[OutputEvent]:
        """Yield the events of the next piece."""
        index = 0
        while index < len(text) and not self._writer.is_closed:
            if self._state is _State.OUTSIDE:
                content, end = self._begin.push(text, index)
                yield from self._writer.content(content)
                if end is not None:
                    self._state, self._lead = _State.BEGUN, [BEGIN]
                index = len(text) if end is None else end
            elif self._scanner is not None:
                index = yield from self._call(self._scanner, text, index)
            else:
                index = yield from self._seek(text, index)

    def finish(self) -> Iterator[OutputEvent]:
        """Yield the events that the end of the output brings."""
        if not self._writer.is_closed:
            if self._scanner is not None and self._scanner.name is None:
                yield from self._writer.content("".join([*self._lead, self._scanner.raw]))
            elif self._state is not _State.OUTSIDE and self._lead[:1] == [BEGIN]:  # no call came
                yield from self._writer.content("".join(self._lead))
            elif self._state is _State.OUTSIDE:
                yield from self._writer.content(self._begin.finish())
        yield from self._writer.finish()

    def _seek(self, text: str, index: int) -> Generator[OutputEvent, None, int]:
        """Advance to the next call, or out of the list."""
        character = text[index]
        if character.isspace() or (character == "," and self._state is _State.LIST):
            self._lead.append(character)
            return index + 1
        if self._state is _State.BEGUN and character == "[":
            self._state, self._is_list = _State.LIST, True
            self._lead.append(character)
            return index + 1
        if self._state is _State.LIST and character != "{":
            self._state = _State.OUTSIDE
            is_closed = character == "]"
            if not self._writer.num_calls:
                yield from self._writer.content("".join([*self._lead, "]" * is_closed]))
            return index + is_closed
        self._is_list = self._state is _State.LIST
        self._state = _State.CALL
        self._scanner = self._writer.scanner(is_name_first=character != "{")
        return index

    def _call(
        self, scanner: CallScanner, text: str, index: int
    ) -> Generator[OutputEvent, None, int]:
        index = scanner.push(text, index)
        yield from self._writer.call(scanner)
        if scanner.is_complete or scanner.is_malformed:
            self._scanner = None
            self._state = _State.LIST if self._is_list and scanner.is_complete else _State.OUTSIDE
            if scanner.name is None:
                self._state = _State.OUTSIDE
                yield from self._writer.content("".join([*self._lead, scanner.raw]))
            self._lead = []
        return index
