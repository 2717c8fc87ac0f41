"""An answer as server-sent events: outputs in, bytes out; waits for nothing."""

import logging
from collections.abc import Iterable

from engine.request import RequestOutput
from server.errors import failure_of
from server.render.common import Chunk, Renderer
from server.render.event import event, mark

_INLINE_LOGPROBS = 1000  # a few milliseconds of rendering; more is done on a thread

logger = logging.getLogger(__name__)


class AnswerEvents:
    """The events of one answer.

    Errors after the status was sent: `data: {"error": …}`, then `data: [DONE]`, unless the
    endpoint has words of its own.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        # The only event of a piece that goes on and is nothing but text; None: see `piece`.
        self.text_event = renderer.text_event

    def opening(self) -> bytes:
        """What a stream begins with, before the first output."""
        return _encode(self._renderer.opening_chunks())

    def piece(self, index: int, output: RequestOutput) -> bytes:
        """One output of one choice; may be nothing yet."""
        return _encode(self._renderer.chunks(index, output))

    def ending(self) -> bytes:
        """What follows when every choice has ended."""
        return _encode(self._renderer.closing_chunks()) + self._end_mark()

    def failure(self, error: Exception) -> bytes:
        """The end of what cannot be finished: the status is out, so the stream says it."""
        failure = failure_of(error)
        logger.warning("stream ended with an error: %s", failure.code, exc_info=failure.is_internal)
        return _encode(self._renderer.failure_chunks(failure)) + self._end_mark()

    def _end_mark(self) -> bytes:
        text = self._renderer.end_mark
        return b"" if text is None else mark(text)


def is_long(output: RequestOutput) -> bool:
    """Whether to render it would hold up the event loop."""
    if not (output.prompt_logprobs or output.logprobs):
        return False
    lists = (output.prompt_logprobs, output.logprobs)
    num_logprobs = sum(len(tokens) * (1 + len(tokens[0].top)) for tokens in lists if tokens)
    return num_logprobs > _INLINE_LOGPROBS


def _encode(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(chunk if isinstance(chunk, bytes) else event(chunk) for chunk in chunks)
