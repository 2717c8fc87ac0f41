"""Outputs → HTTP: the whole answer as JSON, or a stream of server-sent events.

An error before the first output has its own status. After that a stream can only say it in an
event: `data: {"error": …}`, then `data: [DONE]`, unless the endpoint has words of its own. Whoever
leaves early closes the outputs, which aborts the generation.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.request import RequestOutput
from server.connection import while_connected
from server.errors import failure_of
from server.fan_out import IndexedOutputs
from server.protocol.common import NamedEvent
from server.render.common import Renderer, gather

_SEPARATOR = "\n"
_WRITE_TIMEOUT_S = 60.0  # a client that reads nothing for so long is given up
_LONGEST_WAIT_S = 15.0  # for the first output, before a stream's status is sent
_LONGEST_WAIT_IN_QUEUE_S = 45.0  # proxies break off what is silent for longer

logger = logging.getLogger(__name__)


async def whole_answer(request: Request, outputs: IndexedOutputs, renderer: Renderer) -> Response:
    """Wait for everything and answer at once; stops when the client leaves.

    Raises:
        EngineError: the generation failed.
        ClientDisconnect: nobody is there to answer.
    """
    choices = await while_connected(request, _gather_choices(outputs))
    answer = renderer.answer(choices)
    return Response(answer.model_dump_json(), media_type="application/json")


async def streamed_answer(
    request: Request,
    outputs: IndexedOutputs,
    renderer: Renderer,
    *,
    keep_alive_s: float,
    queue_timeout_s: float = 0,
) -> Response:
    """Answer with a stream; returns once there is a first output or waiting for it takes long.

    A request that may be refused for waiting too long gets its status only after that, within
    reason.

    Raises:
        EngineError: the generation was refused.
        ClientDisconnect: the client left before the stream began.
    """
    first = asyncio.ensure_future(anext(outputs))
    try:
        wait_s = min(keep_alive_s or _LONGEST_WAIT_S, _LONGEST_WAIT_S)
        if queue_timeout_s:
            wait_s = max(wait_s, min(queue_timeout_s + 1, _LONGEST_WAIT_IN_QUEUE_S))
        await while_connected(request, _wait(first, wait_s))
        if first.done():
            first.result()
    except BaseException:
        await _close(first, outputs)
        raise
    return _AnswerStream(first, outputs, renderer, keep_alive_s)


class _AnswerStream(EventSourceResponse):
    """A stream of chunks that closes its outputs however it ends."""

    def __init__(
        self,
        first: asyncio.Future[tuple[int, RequestOutput]],
        outputs: IndexedOutputs,
        renderer: Renderer,
        keep_alive_s: float,
    ) -> None:
        super().__init__(
            _events(first, outputs, renderer),
            sep=_SEPARATOR,
            ping=keep_alive_s,
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep=_SEPARATOR),
            send_timeout=_WRITE_TIMEOUT_S,
        )
        self._first = first
        self._outputs = outputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a client that stopped reading was given up")
        finally:  # also when the client left before the first event was asked for
            await _close(self._first, self._outputs)


async def _events(
    first: asyncio.Future[tuple[int, RequestOutput]], outputs: IndexedOutputs, renderer: Renderer
) -> AsyncIterator[bytes]:
    """Events that are ready together go out together, encoded: the library's cost is per send."""
    try:
        if opening := _encode(renderer.opening_chunks()):
            yield opening
        if piece := _encode(renderer.chunks(*await first)):
            yield piece
        async for index, output in outputs:
            if piece := _encode(renderer.chunks(index, output)):
                yield piece
        last = _encode(renderer.closing_chunks())
    except Exception as error:  # the status is out: the stream itself must say it
        failure = failure_of(error)
        logger.warning("stream ended with an error: %s", failure.code, exc_info=failure.is_internal)
        last = _encode(renderer.failure_chunks(failure))
    if renderer.end_mark is not None:
        last += ServerSentEvent(renderer.end_mark, sep=_SEPARATOR).encode()
    if last:
        yield last


def _encode(chunks: Iterable[BaseModel]) -> bytes:
    return b"".join(_event(chunk).encode() for chunk in chunks)


def _event(chunk: BaseModel) -> ServerSentEvent:
    name = chunk.type if isinstance(chunk, NamedEvent) else None
    return ServerSentEvent(chunk.model_dump_json(), event=name, sep=_SEPARATOR)


async def _gather_choices(outputs: IndexedOutputs) -> list[RequestOutput]:
    """Every choice's gathered output, by index."""
    pieces: dict[int, list[RequestOutput]] = {}
    try:
        async for index, output in outputs:
            pieces.setdefault(index, []).append(output)
    finally:
        await outputs.aclose()
    return [gather(pieces[index]) for index in sorted(pieces)]


async def _wait(future: asyncio.Future[tuple[int, RequestOutput]], timeout_s: float) -> None:
    await asyncio.wait({future}, timeout=timeout_s)


async def _close(first: asyncio.Future[tuple[int, RequestOutput]], outputs: IndexedOutputs) -> None:
    first.cancel()
    with suppress(Exception, asyncio.CancelledError):
        await first
    await outputs.aclose()
