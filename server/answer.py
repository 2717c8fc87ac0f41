"""Outputs → HTTP: the whole answer as JSON, or a stream of server-sent events.

An error before the first output has its own status. After that a stream can only say it in an
event: `data: {"error": …}`, then `data: [DONE]`, unless the endpoint has words of its own. Whoever
leaves early closes the outputs, which aborts the generation.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.request import RequestOutput
from server.connection import disconnected, while_connected
from server.errors import failure_of
from server.fan_out import IndexedOutputs
from server.protocol.common import NamedEvent
from server.render.common import Chunk, Renderer, gather
from server.stream import AnswerStream

_LONGEST_WAIT_S = 15.0  # for the first output, before a stream's status is sent
_LONGEST_WAIT_IN_QUEUE_S = 45.0  # proxies break off what is silent for longer

_INLINE_LOGPROBS = 1000  # a few milliseconds of rendering; more is done on a thread

logger = logging.getLogger(__name__)


async def whole_answer(request: Request, outputs: IndexedOutputs, renderer: Renderer) -> Response:
    """Wait for everything and answer at once; stops when the client leaves.

    Raises:
        EngineError: the generation failed.
        ClientDisconnect: nobody is there to answer.
    """
    choices = await while_connected(request, gather_choices(outputs))
    num_logprobs = sum(_num_logprobs(choice) for choice in choices)
    is_long = num_logprobs > _INLINE_LOGPROBS
    body = (
        await asyncio.to_thread(_json, renderer, choices) if is_long else _json(renderer, choices)
    )
    return Response(body, media_type="application/json")


def _json(renderer: Renderer, choices: Sequence[RequestOutput]) -> str:
    return renderer.answer(choices).model_dump_json()


def _num_logprobs(choice: RequestOutput) -> int:
    """Log-probabilities to be rendered, which is what long answers take their time for."""
    if not (choice.prompt_logprobs or choice.logprobs):
        return 0
    lists = (choice.prompt_logprobs, choice.logprobs)
    return sum(len(tokens) * (1 + len(tokens[0].top)) for tokens in lists if tokens)


async def streamed_answer(
    request: Request,
    outputs: IndexedOutputs,
    renderer: Renderer,
    *,
    num_choices: int,
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
    leaving = asyncio.ensure_future(disconnected(request))
    wait_s = min(keep_alive_s or _LONGEST_WAIT_S, _LONGEST_WAIT_S)
    if queue_timeout_s:
        wait_s = max(wait_s, min(queue_timeout_s + 1, _LONGEST_WAIT_IN_QUEUE_S))
    try:
        both = {first, leaving}
        await asyncio.wait(both, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            first.result()
        elif leaving.done():
            raise ClientDisconnect
    except BaseException:
        leaving.cancel()
        await _close(first, outputs)
        raise
    events = _events(first, outputs, renderer, num_choices)
    return AnswerStream(events, leaving, partial(_close, first, outputs), keep_alive_s)


async def _events(
    first: asyncio.Future[tuple[int, RequestOutput]],
    outputs: IndexedOutputs,
    renderer: Renderer,
    num_choices: int,
) -> AsyncIterator[bytes]:
    """Events that are ready together go out together, encoded: every send has its price."""
    ready, num_open = b"", num_choices
    try:
        ready = _encode(renderer.opening_chunks())
        if ready and not first.done():
            yield ready
            ready = b""
        index, output = await first
        ready += await _piece(renderer, index, output)
        num_open -= output.finish_reason is not None
        if ready and num_open:
            yield ready
            ready = b""
        async for index, output in outputs:
            ready += await _piece(renderer, index, output)
            num_open -= output.finish_reason is not None
            if ready and num_open:  # the last piece goes out with the stream's end
                yield ready
                ready = b""
        ready += _encode(renderer.closing_chunks())
    except Exception as error:  # the status is out: the stream itself must say it
        failure = failure_of(error)
        logger.warning("stream ended with an error: %s", failure.code, exc_info=failure.is_internal)
        ready += _encode(renderer.failure_chunks(failure))
    if renderer.end_mark is not None:
        ready += _event(renderer.end_mark.encode())
    if ready:
        yield ready


async def _piece(renderer: Renderer, index: int, output: RequestOutput) -> bytes:
    """The events of one piece of a choice."""
    text = renderer.text_chunk(index, output)
    if text is not None:
        return _event(text)
    if _num_logprobs(output) <= _INLINE_LOGPROBS:
        return _encode(renderer.chunks(index, output))
    return await asyncio.to_thread(lambda: _encode(renderer.chunks(index, output)))


def _encode(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(map(_event, chunks))


def _event(chunk: Chunk) -> bytes:
    """A server-sent event; JSON is always one line."""
    if isinstance(chunk, bytes):
        return b"data: %b\n\n" % chunk
    name = b"event: %b\n" % chunk.type.encode() if isinstance(chunk, NamedEvent) else b""
    return b"%bdata: %b\n\n" % (name, chunk.model_dump_json().encode())


async def gather_choices(outputs: IndexedOutputs) -> list[RequestOutput]:
    """Every choice's gathered output, by index."""
    pieces: dict[int, list[RequestOutput]] = {}
    try:
        async for index, output in outputs:
            pieces.setdefault(index, []).append(output)
    finally:
        await outputs.aclose()
    return [gather(pieces[index]) for index in sorted(pieces)]


async def _close(first: asyncio.Future[tuple[int, RequestOutput]], outputs: IndexedOutputs) -> None:
    first.cancel()
    with suppress(Exception, asyncio.CancelledError):
        await first
    await outputs.aclose()
