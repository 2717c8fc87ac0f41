"""Llama 3's form: the answer is `{"name": …, "parameters": …}`; semicolons separate several."""

from collections.abc import Generator, Iterator

from server.parsing.call_scanner import CallScanner
from server.parsing.events import OutputEvent
from server.parsing.tool_calls import CallWriter, ToolOptions

BEGIN = "<|python_tag|>"  # optional


class Llama3JsonParser:
    """Finds the calls in one choice's answer; if it does not begin as a call, all is content."""

    def __init__(self, options: ToolOptions) -> None:
        self._writer = CallWriter(options)
        self._scanner: CallScanner | None = None
        self._lead: list[str] = []  # before a call: space, separators, a begin tag or part of it
        self._tag = ""
        self._is_content = False

    def push(self, text: str) -> Iterator[OutputEvent]:
        """Yield the events of the next piece."""
        index = 0
        while index < len(text) and not self._writer.is_closed:
            if self._is_content:
                yield from self._writer.content(text[index:])
                return
            if self._scanner is None:
                index = yield from self._seek(text, index)
            else:
                index = yield from self._call(self._scanner, text, index)

    def finish(self) -> Iterator[OutputEvent]:
        """Yield the events that the end of the output brings."""
        if self._scanner is not None and self._scanner.name is None:
            self._lead.append(self._scanner.raw)
        if not self._writer.is_closed and (self._scanner is not None or not self._writer.num_calls):
            yield from self._writer.content("".join(self._lead))
        yield from self._writer.finish()

    def _seek(self, text: str, index: int) -> Generator[OutputEvent, None, int]:
        """Advance to the next call's brace, or to what shows that there is none."""
        character = text[index]
        if character == "{" and self._tag in ("", BEGIN):
            self._scanner = self._writer.scanner()
            return index
        is_gap = character.isspace() or (character in ";," and self._writer.num_calls > 0)
        if is_gap and self._tag in ("", BEGIN):
            self._lead.append(character)
        elif BEGIN.startswith(self._tag + character):
            self._tag += character
            self._lead.append(character)
        else:
            yield from self._give_up("")
            return index
        return index + 1

    def _call(
        self, scanner: CallScanner, text: str, index: int
    ) -> Generator[OutputEvent, None, int]:
        index = scanner.push(text, index)
        yield from self._writer.call(scanner)
        if scanner.name is not None and (scanner.is_complete or scanner.is_malformed):
            self._scanner, self._tag = None, ""
            self._lead.clear()
            self._is_content = scanner.is_malformed
        elif scanner.is_complete or scanner.is_malformed:
            yield from self._give_up(scanner.raw)
        return index

    def _give_up(self, raw: str) -> Iterator[OutputEvent]:
        self._scanner, self._is_content = None, True
        yield from self._writer.content("".join([*self._lead, raw]))
        self._lead.clear()
