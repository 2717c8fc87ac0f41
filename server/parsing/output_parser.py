"""Turns the output text of one choice into events."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine import Tokenizer
from server.parsing.events import ContentText, OutputEvent, ReasoningText, ToolCallStart
from server.parsing.forms import ToolForm, tool_parser
from server.parsing.reasoning import ReasoningSplitter
from server.parsing.reasoning_counter import ReasoningCounter
from server.parsing.tool_calls import ToolOptions, ToolParser


class OutputParser:
    """Splits one choice's reasoning off, then finds calls in the rest. Linear in the text."""

    def __init__(
        self,
        reasoning: ReasoningSplitter | None,
        tools: ToolParser | None,
        *,
        shows_reasoning: bool = True,
        note_calls: Callable[[bool], None] | None = None,
    ) -> None:
        """
        Args:
            reasoning: Splits reasoning off; None: there is none.
            tools: Finds calls; None: they are not looked for.
            shows_reasoning: False: reasoning is split off and dropped.
            note_calls: Called in the end with whether there were calls, if they were looked for.
        """
        self._reasoning = reasoning
        self._shows_reasoning = shows_reasoning
        self._tools = tools
        self._note_calls = note_calls
        self._has_called = False

    def push(self, text: str) -> list[OutputEvent]:
        """Return the events of the next piece of text; what is still ambiguous is held back."""
        split = self._reasoning.push(text) if self._reasoning else _as_content(text)
        events = list(self._with_calls(split))
        self._has_called |= any(isinstance(event, ToolCallStart) for event in events)
        return events

    def finish(self) -> list[OutputEvent]:
        """Return the events that the end of the output brings, from what was held back."""
        split = self._reasoning.finish() if self._reasoning else iter(())
        events = list(self._with_calls(split))
        if self._tools is not None:
            events += self._tools.finish()
            if self._note_calls is not None:
                self._note_calls(self._has_called)
        return events

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
    """What to look for in the outputs of one request; every choice needs its own `parser()`."""

    thinks: bool = False  # split reasoning from the answer
    shows_reasoning: bool = True  # False: thoughts are split off and dropped
    is_thinking: bool = False  # with `thinks`: the output begins within a thought
    tool_form: ToolForm = ToolForm.HERMES
    tools: ToolOptions | None = None  # None: no calls, whatever the text looks like
    # Whether the finish reason of an answer with calls is "tool_calls". Where the function was
    # forced by name it is "stop", as in OpenAI's API and vLLM.
    ends_by_calling: bool = True
    note_calls: Callable[[bool], None] | None = None  # called per choice with whether it has calls

    @property
    def is_plain(self) -> bool:
        """Whether all of the output is content."""
        return not self.thinks and self.tools is None

    @property
    def marks_are_special(self) -> bool:
        """Whether calls are marked by control tokens, which the text then has to keep."""
        return self.tools is not None and self.tool_form is not ToolForm.HERMES

    def splitter(self) -> ReasoningSplitter | None:
        """Make a splitter, if the model thinks."""
        return ReasoningSplitter(begins_inside=self.is_thinking) if self.thinks else None

    def counter(self, tokenizer: Tokenizer) -> ReasoningCounter:
        """Make a counter of the thought's tokens."""
        return ReasoningCounter(tokenizer, self.splitter())

    def parser(self) -> OutputParser:
        """Make a parser."""
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
