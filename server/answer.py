"""Turns outputs into an HTTP answer: one JSON document, or a stream of server-sent events.

An error before the first output gets an HTTP status of its own; after that the stream reports it.
Whoever stops early closes the generations, which aborts them.
"""

import asyncio
from collections.abc import Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.output_slot import merged
from engine.request import RequestOutput
from server.answer_events import AnswerEvents, is_long
from server.connection import leaving, while_connected
from server.delivery import Delivery
from server.generations import Generations
from server.http_protocol import connection_of
from server.render.common import Renderer
from server.stream import AnswerStream

_LONGEST_WAIT_S = 15.0  # for the first output, before a stream's status is sent
# Longest wait for a stream's first output under a queue timeout; proxies cut longer silences off.
_LONGEST_WAIT_IN_QUEUE_S = 45.0


async def whole_answer(request: Request, generations: Generations, renderer: Renderer) -> Response:
    """Wait for every choice and answer with one document; stop when the client leaves.

    Raises:
        EngineError: the generation failed.
        ClientDisconnect: the client left.
    """
    choices = await while_connected(request, gather_choices(generations))
    body = (
        await asyncio.to_thread(_json, renderer, choices)
        if any(map(is_long, choices))
        else _json(renderer, choices)
    )
    return Response(body, media_type="application/json")


def _json(renderer: Renderer, choices: Sequence[RequestOutput]) -> str:
    return renderer.answer(choices).model_dump_json()


async def streamed_answer(
    request: Request,
    generations: Generations,
    renderer: Renderer,
    *,
    keep_alive_s: float,
    queue_timeout_s: float = 0,
) -> Response:
    """Answer with a stream; return once there is a first output or the wait for it gets long.

    With a queue timeout the wait covers it, up to `_LONGEST_WAIT_IN_QUEUE_S`, so that a request
    refused for waiting too long is answered with that status.

    Raises:
        EngineError: the generation was refused.
        ClientDisconnect: the client left before the stream began.
    """
    gone = leaving(request)
    wait_s = min(keep_alive_s or _LONGEST_WAIT_S, _LONGEST_WAIT_S)
    if queue_timeout_s:
        wait_s = max(wait_s, min(queue_timeout_s + 1, _LONGEST_WAIT_IN_QUEUE_S))
    gone.add_done_callback(generations.wake)
    timer = asyncio.get_running_loop().call_later(wait_s, generations.wake)
    try:
        await generations.ready()
        generations.require_one()
        if gone.done():
            raise ClientDisconnect
    except BaseException:
        gone.cancel()
        generations.close()
        raise
    finally:
        gone.remove_done_callback(generations.wake)
        timer.cancel()
    delivery = Delivery(generations, AnswerEvents(renderer), connection_of(request.scope))
    return AnswerStream(delivery, gone, generations.close, keep_alive_s)


async def gather_choices(generations: Generations) -> list[RequestOutput]:
    """Wait for every choice and return the gathered outputs by index; closes the generations.

    Raises:
        EngineError: one of them failed.
    """
    pieces: dict[int, list[RequestOutput]] = {}
    try:
        while not generations.is_over:
            await generations.ready()
            for index, output in generations.take():
                pieces.setdefault(index, []).append(output)
    finally:
        generations.close()
    return [merged(pieces[index]) for index in sorted(pieces)]
