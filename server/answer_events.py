"""An answer as server-sent events: outputs in, bytes out; waits for nothing."""

import logging
from collections.abc import Iterable, Sequence

from engine.request import RequestOutput
from server.errors import failure_of
from server.protocol.common import NamedEvent
from server.render.common import Chunk, Renderer

_INLINE_LOGPROBS = 1000  # a few milliseconds of rendering; more is done on a thread

logger = logging.getLogger(__name__)


class AnswerEvents:
    """The events of one answer.

    Errors after the status was sent: `data: {"error": …}`, then `data: [DONE]`, unless the
    endpoint has words of its own.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def opening(self) -> bytes:
        """What a stream begins with, before the first output."""
        return _encode(self._renderer.opening_chunks())

    def piece(self, index: int, output: RequestOutput) -> bytes:
        """One output of one choice; may be nothing yet."""
        text = self._renderer.text_chunk(index, output)
        return _encode(self._renderer.chunks(index, output)) if text is None else _event(text)

    def ending(self) -> bytes:
        """What follows when every choice has ended."""
        return _encode(self._renderer.closing_chunks()) + self._end_mark()

    def failure(self, error: Exception) -> bytes:
        """The end of what cannot be finished: the status is out, so the stream says it."""
        failure = failure_of(error)
        logger.warning("stream ended with an error: %s", failure.code, exc_info=failure.is_internal)
        return _encode(self._renderer.failure_chunks(failure)) + self._end_mark()

    def _end_mark(self) -> bytes:
        mark = self._renderer.end_mark
        return b"" if mark is None else _event(mark.encode())


def is_long(outputs: Sequence[RequestOutput]) -> bool:
    """Whether to render them would hold up the event loop."""
    return sum(map(_num_logprobs, outputs)) > _INLINE_LOGPROBS


def _num_logprobs(output: RequestOutput) -> int:
    """Log-probabilities to be rendered, which is what long answers take their time for."""
    if not (output.prompt_logprobs or output.logprobs):
        return 0
    lists = (output.prompt_logprobs, output.logprobs)
    return sum(len(tokens) * (1 + len(tokens[0].top)) for tokens in lists if tokens)


def _encode(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(map(_event, chunks))


def _event(chunk: Chunk) -> bytes:
    """A server-sent event; JSON is always one line."""
    if isinstance(chunk, bytes):
        return b"data: %b\n\n" % chunk
    name = b"event: %b\n" % chunk.type.encode() if isinstance(chunk, NamedEvent) else b""
    return b"%bdata: %b\n\n" % (name, chunk.model_dump_json().encode())
