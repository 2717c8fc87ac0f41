"""Encodes an answer as server-sent events: outputs in, bytes out, without waiting."""

import logging
from collections.abc import Iterable

from engine.request import RequestOutput
from server.errors import failure_of
from server.render.common import Chunk, Renderer
from server.render.event import event, mark

_INLINE_LOGPROBS = 1000  # a few milliseconds of rendering; more is done on a thread

logger = logging.getLogger(__name__)


class AnswerEvents:
    """The server-sent events of one answer.

    An error after the status was sent becomes `data: {"error": …}`, then `data: [DONE]`, unless the
    endpoint's renderer has events of its own for it.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        # Encodes an output that is nothing but text: its only event, unless the output ends its
        # choice. Returns None for other outputs, which take `piece`.
        self.text_event = renderer.text_event

    def opening(self) -> bytes:
        """Return what the stream begins with, before the first output."""
        return _encode(self._renderer.opening_chunks())

    def piece(self, index: int, output: RequestOutput) -> bytes:
        """Encode one output of one choice; the result may be empty."""
        return _encode(self._renderer.chunks(index, output))

    def ending(self) -> bytes:
        """Return what follows when every choice has ended."""
        return _encode(self._renderer.closing_chunks()) + self._end_mark()

    def failure(self, error: Exception) -> bytes:
        """Log an error and return the events that end the stream with it."""
        failure = failure_of(error)
        logger.warning("stream ended with an error: %s", failure.code, exc_info=failure.is_internal)
        return _encode(self._renderer.failure_chunks(failure)) + self._end_mark()

    def _end_mark(self) -> bytes:
        text = self._renderer.end_mark
        return b"" if text is None else mark(text)


def is_long(output: RequestOutput) -> bool:
    """Whether rendering the output would hold up the event loop."""
    if not (output.prompt_logprobs or output.logprobs):
        return False
    lists = (output.prompt_logprobs, output.logprobs)
    num_logprobs = sum(len(tokens) * (1 + len(tokens[0].top)) for tokens in lists if tokens)
    return num_logprobs > _INLINE_LOGPROBS


def _encode(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(chunk if isinstance(chunk, bytes) else event(chunk) for chunk in chunks)
