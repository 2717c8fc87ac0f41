"""Notices that a client has left while its answer is being made."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from server.http_protocol import connection_of

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work`, but cancel it as soon as the client has left. The body must have been read.

    Raises:
        ClientDisconnect: the client left first.
    """
    working = asyncio.ensure_future(work)
    watching = leaving(request)
    try:
        both: set[asyncio.Future[Any]] = {working, watching}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def leaving(request: Request) -> asyncio.Future[None]:
    """Return a future that is done when the client has left; the caller cancels it in the end.

    The body must have been read.
    """
    connection = connection_of(request.scope)
    if connection is not None:
        return connection.leaving()
    return asyncio.ensure_future(_disconnected(request))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
