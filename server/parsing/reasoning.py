"""Splits what a model thinks, `<think>…</think>` before the answer, from what it says."""

from collections.abc import Iterator
from enum import Enum, auto

from server.parsing.events import ContentText, ReasoningText
from server.parsing.tag import TagFinder

BEGIN, END = "<think>", "</think>"


class _State(Enum):
    BEFORE = auto()  # nothing but space so far: a begin tag may come
    INSIDE = auto()
    AFTER = auto()  # the answer, to the end


class ReasoningSplitter:
    """Splits one choice's output. White space around the tags belongs to neither side."""

    def __init__(self, *, begins_inside: bool) -> None:
        """
        Args:
            begins_inside: The thought is open from the start; a begin tag may be repeated.
        """
        self._state = _State.BEFORE
        self._begins_inside = begins_inside
        self._end = TagFinder(END)
        self._tag = ""  # in BEFORE: text that may be the start of a begin tag
        self._space: list[str] = []  # held back until what follows shows whether it counts
        self._is_at_start = True  # nothing visible has come on this side of the tag

    @property
    def is_inside(self) -> bool:
        """Whether the model is thinking, as far as is known."""
        return self._state is _State.INSIDE or (
            self._begins_inside and self._state is _State.BEFORE
        )

    @property
    def is_undecided(self) -> bool:
        """Whether a thought may still begin."""
        return self._state is _State.BEFORE

    def push(self, text: str) -> Iterator[ReasoningText | ContentText]:
        """Yield the events of the next piece."""
        if self._state is _State.BEFORE:
            text = self._find_begin(text)
        if self._state is _State.INSIDE:
            thought, end = self._end.push(text)
            yield from self._think(thought)
            if end is None:
                return
            self._state, self._is_at_start = _State.AFTER, True
            text = text[end:]
        yield from self._say(text)

    def finish(self) -> Iterator[ReasoningText | ContentText]:
        """Yield what was held back, except white space that belongs to neither side."""
        if self._state is _State.INSIDE:
            yield from self._think(self._end.finish())
        elif self._state is _State.BEFORE and (text := self._release()):
            yield ReasoningText(text) if self._begins_inside else ContentText(text)

    def _find_begin(self, text: str) -> str:
        """Look for a begin tag; return the text left for the next state, "" while undecided."""
        visible = text if self._tag else text.lstrip()
        self._space.append(text[: len(text) - len(visible)])
        self._tag += visible
        if self._tag != BEGIN and BEGIN.startswith(self._tag):
            return ""
        if self._tag.startswith(BEGIN):
            self._state = _State.INSIDE
            self._space.clear()
            return self._tag[len(BEGIN) :]
        if self._begins_inside:
            self._state = _State.INSIDE
        else:
            self._state, self._is_at_start = _State.AFTER, False  # no thought: leading space counts
        return self._release()

    def _release(self) -> str:
        text = "".join([*self._space, self._tag])
        self._space.clear()
        return text

    def _think(self, text: str) -> Iterator[ReasoningText]:
        text = text.lstrip() if self._is_at_start else text
        visible = text.rstrip()
        if visible:
            self._is_at_start = False
            yield ReasoningText("".join([*self._space, visible]))
            self._space.clear()
        if len(visible) < len(text):
            self._space.append(text[len(visible) :])

    def _say(self, text: str) -> Iterator[ContentText]:
        if self._is_at_start:
            text = text.lstrip()
        if text:
            self._is_at_start = False
            yield ContentText(text)
