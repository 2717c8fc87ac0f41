"""One choice's output text → events. Give every choice its own, and every piece of text once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from engine import Tokenizer
from server.parsing.events import ContentText, OutputEvent, ReasoningText, ToolCallStart
from server.parsing.forms import ToolForm, tool_parser
from server.parsing.reasoning import ReasoningSplitter
from server.parsing.reasoning_counter import ReasoningCounter
from server.parsing.tool_calls import ToolOptions, ToolParser


class OutputParser:
    """Splits reasoning off first; calls are looked for in what is left. Linear in the text."""

    def __init__(
        self,
        reasoning: ReasoningSplitter | None,
        tools: ToolParser | None,
        *,
        shows_reasoning: bool = True,
        note_calls: Callable[[bool], None] | None = None,
    ) -> None:
        """Args: note_calls: Told in the end whether there were any, if they were looked for."""
        self._reasoning = reasoning
        self._shows_reasoning = shows_reasoning
        self._tools = tools
        self._note_calls = note_calls
        self._has_called = False

    def push(self, text: str) -> list[OutputEvent]:
        """Events of the next piece of text; what may turn out otherwise is held back."""
        split = self._reasoning.push(text) if self._reasoning else _as_content(text)
        events = list(self._with_calls(split))
        self._look_for_call(events)
        return events

    def finish(self) -> list[OutputEvent]:
        """What the end of the output brings: all that was held back."""
        split = self._reasoning.finish() if self._reasoning else iter(())
        events = list(self._with_calls(split))
        if self._tools is not None:
            events += self._tools.finish()
            self._look_for_call(events)
            if self._note_calls is not None:
                self._note_calls(self._has_called)
        return events

    def _look_for_call(self, events: Iterable[OutputEvent]) -> None:
        self._has_called |= any(isinstance(event, ToolCallStart) for event in events)

    def _with_calls(self, split: Iterator[OutputEvent]) -> Iterator[OutputEvent]:
        for event in split:
            if isinstance(event, ReasoningText) and not self._shows_reasoning:
                continue
            if self._tools is not None and isinstance(event, ContentText):
                yield from self._tools.push(event.text)
            else:
                yield event


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """What to look for in the outputs of one request; `parser()` once per choice."""

    thinks: bool = False  # split reasoning from the answer
    shows_reasoning: bool = True  # False: thoughts are split off and dropped
    is_thinking: bool = False  # if it thinks: the prompt ends within a thought
    tool_form: ToolForm = ToolForm.HERMES
    tools: ToolOptions | None = None  # None: no calls, whatever the text looks like
    # A call ends an answer for a reason of its own, unless it was asked for by name: then the
    # answer just stops, at OpenAI and vLLM as well.
    ends_by_calling: bool = True
    note_calls: Callable[[bool], None] | None = None  # told of every choice if it calls

    @property
    def is_plain(self) -> bool:
        """Whether all of the output is content."""
        return not self.thinks and self.tools is None

    @property
    def marks_are_special(self) -> bool:
        """Whether calls are marked by control tokens, which the text has to keep then."""
        return self.tools is not None and self.tool_form is not ToolForm.HERMES

    def splitter(self) -> ReasoningSplitter | None:
        """A fresh splitter, if the model thinks."""
        return ReasoningSplitter(begins_inside=self.is_thinking) if self.thinks else None

    def counter(self, tokenizer: Tokenizer) -> ReasoningCounter:
        """A fresh counter of the thought's tokens."""
        return ReasoningCounter(tokenizer, self.splitter())

    def parser(self) -> OutputParser:
        """A fresh parser."""
        tools = tool_parser(self.tool_form, self.tools) if self.tools else None
        return OutputParser(
            self.splitter(),
            tools,
            shows_reasoning=self.shows_reasoning,
            note_calls=self.note_calls,
        )


def _as_content(text: str) -> Iterator[OutputEvent]:
    if text:
        yield ContentText(text)
