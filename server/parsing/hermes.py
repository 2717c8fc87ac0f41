"""The form of Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`, repeated."""

from collections.abc import Generator, Iterator

from server.parsing.call_scanner import CallScanner
from server.parsing.events import OutputEvent
from server.parsing.tag import TagFinder
from server.parsing.tool_calls import CallWriter, ToolOptions

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser:
    """Finds the calls in one choice's answer."""

    def __init__(self, options: ToolOptions) -> None:
        self._writer = CallWriter(options)
        self._begin = TagFinder(BEGIN)
        self._scanner: CallScanner | None = None  # within a call
        self._after: str | None = None  # after a call: as much of the end tag as has come

    def push(self, text: str) -> Iterator[OutputEvent]:
        """Yield the events of the next piece."""
        index = 0
        while index < len(text) and not self._writer.is_closed:
            if self._after is not None:
                index = yield from self._close(text, index)
            elif self._scanner is not None:
                index = yield from self._call(self._scanner, text, index)
            else:
                content, end = self._begin.push(text, index)
                yield from self._writer.content(content)
                if end is not None:
                    self._scanner = self._writer.scanner()
                index = len(text) if end is None else end

    def finish(self) -> Iterator[OutputEvent]:
        """Yield the events that the end of the output brings."""
        if not self._writer.is_closed:
            if self._scanner is not None and self._scanner.name is None:
                yield from self._writer.content(BEGIN + self._scanner.raw)
            elif self._scanner is None:
                yield from self._writer.content(self._begin.finish())
        yield from self._writer.finish()

    def _call(
        self, scanner: CallScanner, text: str, index: int
    ) -> Generator[OutputEvent, None, int]:
        index = scanner.push(text, index)
        yield from self._writer.call(scanner)
        if scanner.is_complete or scanner.is_malformed:
            self._scanner = None
            self._after = ""
            if scanner.name is None:  # not a call after all
                self._after = None
                yield from self._writer.content(BEGIN + scanner.raw)
        return index

    def _close(self, text: str, index: int) -> Generator[OutputEvent, None, int]:
        """Skip space and the end tag, which a careless model forgets."""
        assert self._after is not None
        while index < len(text):
            if self._after or not text[index].isspace():
                if not END.startswith(self._after + text[index]):
                    after, self._after = self._after, None
                    yield from self._writer.content(after)
                    return index
                self._after += text[index]
            index += 1
            if self._after == END:
                self._after = None
                return index
        return index
