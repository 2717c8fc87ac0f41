"""The items of a response as they grow: each is announced, filled and closed before the next.

Knows nothing of the response around them, nor of sampling and usage.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from server.parsing.events import (
    ContentText,
    OutputEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from server.protocol import responses as wire
from server.protocol.chat import TokenLogprob
from server.protocol.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartEvent,
    ItemEvent,
    OutputItemEvent,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)

EndStatus = Literal["completed", "incomplete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an item stands in its response, and where its events get their numbers."""

    answer_hex: str  # makes ids unique
    output_index: int
    number: Callable[[], int]  # draws the next event's number

    def item_id(self, prefix: str) -> str:
        """Return the item's id, which begins with `prefix`."""
        return f"{prefix}_{self.answer_hex}{self.output_index:02x}"


class OpenItem(ABC):
    """An item that still grows; a response has at most one."""

    def __init__(self, place: Place, prefix: str) -> None:
        self.id = place.item_id(prefix)
        self._place = place
        self._pieces: list[str] = []

    @property
    def at(self) -> dict[str, Any]:
        """The fields by which an event names the item and itself; draws an event number."""
        return {
            "sequence_number": self._place.number(),
            "output_index": self._place.output_index,
            "item_id": self.id,
        }

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @abstractmethod
    def item(self, status: wire.ItemStatus) -> wire.OutputItem:
        """Return the item as of now."""

    @abstractmethod
    def begin(self) -> Iterator[ItemEvent]:
        """Yield the events that announce the item."""

    @abstractmethod
    def end(self, status: EndStatus) -> Iterator[ItemEvent]:
        """Yield the events that close the item."""

    def _added(self, item: wire.OutputItem) -> OutputItemEvent:
        return self._event("response.output_item.added", item)

    def _done(self, status: EndStatus) -> OutputItemEvent:
        return self._event("response.output_item.done", self.item(status))

    def _event(self, kind: Any, item: wire.OutputItem) -> OutputItemEvent:
        place = self._place
        return OutputItemEvent(
            type=kind, sequence_number=place.number(), output_index=place.output_index, item=item
        )


class OpenMessage(OpenItem):
    """What the model says: one part of text."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, "msg")
        self._logprobs: list[TokenLogprob] = []

    def item(self, status: wire.ItemStatus) -> wire.OutputMessage:
        """Return the message as of now."""
        return wire.OutputMessage(id=self.id, status=status, content=[self._part()])

    def begin(self) -> Iterator[ItemEvent]:
        """Announce the message, then its part, both empty."""
        yield self._added(wire.OutputMessage(id=self.id, status="in_progress", content=[]))
        part = wire.OutputText(text="")
        yield ContentPartEvent(
            type="response.content_part.added", content_index=0, part=part, **self.at
        )

    def add(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[ItemEvent]:
        """Add a piece of the text; tokens may come before the text they stand for."""
        if not text and not logprobs:
            return
        self._pieces.append(text)
        self._logprobs += logprobs
        yield TextDelta(content_index=0, delta=text, logprobs=logprobs, **self.at)

    def end(self, status: EndStatus) -> Iterator[ItemEvent]:
        """Close the text, its part and the message, each with its whole content."""
        part = self._part()
        yield TextDone(content_index=0, text=part.text, logprobs=part.logprobs, **self.at)
        yield ContentPartEvent(
            type="response.content_part.done", content_index=0, part=part, **self.at
        )
        yield self._done(status)

    def _part(self) -> wire.OutputText:
        return wire.OutputText(text=self.text, logprobs=self._logprobs)


class OpenReasoning(OpenItem):
    """What the model thinks: one part of text."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, "rs")

    def item(self, status: wire.ItemStatus) -> wire.ReasoningItem:
        """Return the thought as of now."""
        return wire.ReasoningItem(id=self.id, status=status, content=[self._part()])

    def begin(self) -> Iterator[ItemEvent]:
        """Announce the item, then its part, both empty."""
        yield self._added(wire.ReasoningItem(id=self.id, status="in_progress", content=[]))
        part = wire.ReasoningText(text="")
        yield ContentPartEvent(
            type="response.content_part.added", content_index=0, part=part, **self.at
        )

    def add(self, text: str) -> Iterator[ItemEvent]:
        """Add a piece of the thought."""
        self._pieces.append(text)
        yield ReasoningDelta(content_index=0, delta=text, **self.at)

    def end(self, status: EndStatus) -> Iterator[ItemEvent]:
        """Close the thought, its part and the item, each with its whole content."""
        yield ReasoningDone(content_index=0, text=self.text, **self.at)
        yield ContentPartEvent(
            type="response.content_part.done", content_index=0, part=self._part(), **self.at
        )
        yield self._done(status)

    def _part(self) -> wire.ReasoningText:
        return wire.ReasoningText(text=self.text)


class OpenCall(OpenItem):
    """A call that the model writes."""

    def __init__(self, place: Place, call_id: str, name: str) -> None:
        super().__init__(place, "fc")
        self._call_id = call_id
        self._name = name

    def item(self, status: wire.ItemStatus) -> wire.FunctionCallItem:
        """Return the call as of now."""
        return wire.FunctionCallItem(
            id=self.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            arguments=self.text,
        )

    def begin(self) -> Iterator[ItemEvent]:
        """Announce the call, without arguments yet."""
        yield self._added(self.item("in_progress"))

    def add(self, text: str) -> Iterator[ItemEvent]:
        """Add a piece of the arguments."""
        self._pieces.append(text)
        yield ArgumentsDelta(delta=text, **self.at)

    def end(self, status: EndStatus) -> Iterator[ItemEvent]:
        """Close the arguments and the call, each with its whole content."""
        yield ArgumentsDone(name=self._name, arguments=self.text, **self.at)
        yield self._done(status)


class ResponseItems:
    """All items of one response; at most the last one is open."""

    def __init__(
        self,
        answer_hex: str,
        number: Callable[[], int],
        logprobs_of: Callable[[int], list[TokenLogprob]],
    ) -> None:
        """Begin without any items.

        Args:
            answer_hex: makes the items' ids unique.
            number: draws the next event's number.
            logprobs_of: takes the new log-probabilities of a message, given its number from 0.
        """
        self._answer_hex = answer_hex
        self._number = number
        self._logprobs_of = logprobs_of
        self._whole: list[wire.OutputItem] = []
        self._open: OpenItem | None = None
        self._num_messages = 0  # begun

    def so_far(self) -> list[wire.OutputItem]:
        """Return every item; an open one has the status "incomplete"."""
        return [*self._whole, *([self._open.item("incomplete")] if self._open else [])]

    def push(self, events: Iterable[OutputEvent]) -> Iterator[ItemEvent]:
        """Yield the response's events that these bring."""
        yield from self._take(events, "completed")
        if isinstance(self._open, OpenMessage):
            yield from self._say(self._open, "")

    def finish(self, events: Iterable[OutputEvent], status: EndStatus) -> Iterator[ItemEvent]:
        """Yield the events of the output's end: the last item ends with the response's status.

        A response without items gets an empty message.
        """
        yield from self._take(events, status)
        if not self._whole and self._open is None:
            yield from self._begin(OpenMessage(self._next_place()))
        if isinstance(self._open, OpenMessage):
            yield from self._say(self._open, "")
        yield from self._close(status)

    def _take(self, events: Iterable[OutputEvent], call_status: EndStatus) -> Iterator[ItemEvent]:
        for event in events:
            match event:
                case ContentText(text):
                    message = self._open
                    if not isinstance(message, OpenMessage):
                        message = OpenMessage(self._next_place())
                        yield from self._begin(message)
                    yield from self._say(message, text)
                case ReasoningText(text):
                    thought = self._open
                    if not isinstance(thought, OpenReasoning):
                        thought = OpenReasoning(self._next_place())
                        yield from self._begin(thought)
                    yield from thought.add(text)
                case ToolCallStart(_, call_id, name):
                    yield from self._begin(OpenCall(self._next_place(), call_id, name))
                case ToolCallArguments(_, text):
                    assert isinstance(self._open, OpenCall), "arguments follow their call's start"
                    yield from self._open.add(text)
                case ToolCallEnd():
                    yield from self._close(call_status)

    def _say(self, message: OpenMessage, text: str) -> Iterator[ItemEvent]:
        yield from message.add(text, self._logprobs_of(self._num_messages - 1))

    def _begin(self, item: OpenItem) -> Iterator[ItemEvent]:
        yield from self._close("completed")
        self._open = item
        self._num_messages += isinstance(item, OpenMessage)
        yield from item.begin()

    def _close(self, status: EndStatus) -> Iterator[ItemEvent]:
        if self._open is not None:
            yield from self._open.end(status)
            self._whole.append(self._open.item(status))
            self._open = None

    def _next_place(self) -> Place:
        index = len(self._whole) + (self._open is not None)
        return Place(answer_hex=self._answer_hex, output_index=index, number=self._number)
