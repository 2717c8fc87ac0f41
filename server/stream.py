"""The response that streams server-sent events: keep-alive comments, disconnects and the end."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.event import ensure_bytes
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_SEPARATOR = "\n"
_STATUS = 200
_HEADERS = EventSourceResponse(iter(())).raw_headers  # the library's own


class Pieces(Protocol):
    """The pieces of a stream."""

    last_piece: bytes  # goes out with the stream's end, once `body` is exhausted

    def body(self) -> AsyncGenerator[bytes, None]:
        """Yield all pieces but the last."""


class AnswerStream(Response):
    """A response that sends encoded events, and cleans up however it ends.

    sse-starlette's own response keeps four tasks in a task group for every stream, which costs a
    short answer a fifth of its time; it also sends the end apart from the last piece, and puts a
    cancel scope around every send. Here the request's own task sends, and a keep-alive task starts
    only once it is needed. `server.http_protocol` gives up clients that stop reading.
    """

    def __init__(
        self,
        pieces: Pieces,
        leaving: asyncio.Future[None],
        close: Callable[[], None],
        keep_alive_s: float,
    ) -> None:
        """
        Args:
            pieces: What is sent.
            leaving: Done when the client has left; cancelled here in the end.
            close: Called in the end, even if no piece was ever asked for.
            keep_alive_s: Seconds between comments that keep proxies from giving up; 0: none.
        """
        self.status_code = _STATUS
        self.raw_headers = [*_HEADERS]
        self.background = None
        self._pieces = pieces
        self._body = pieces.body()
        self._leaving = leaving
        self._close = close
        self._keep_alive_s = keep_alive_s
        self._send_lock = asyncio.Lock()
        self._is_active = True  # until the last piece is being sent, or the client has left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events are over or the client has left."""
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        keeping_alive: asyncio.Task[None] | None = None

        def stop(_: asyncio.Future[None]) -> None:
            if self._is_active:
                self._is_active = False
                task.cancel()

        def keep_alive() -> None:
            nonlocal keeping_alive
            keeping_alive = asyncio.create_task(self._keep_alive(send))

        timer = (
            asyncio.get_running_loop().call_later(self._keep_alive_s, keep_alive)
            if self._keep_alive_s
            else None
        )
        self._leaving.add_done_callback(stop)
        try:
            await self._stream_response(send)
        except asyncio.CancelledError:
            has_left = self._leaving.done() and not self._leaving.cancelled()
            if not has_left or task.uncancel():
                raise
        finally:
            self._is_active = False
            self._leaving.cancel()
            for each in (timer, keeping_alive):
                if each is not None:
                    each.cancel()
            self._close()

    async def _stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async with aclosing(self._body) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        async with self._send_lock:
            self._is_active = False
            await send({"type": "http.response.body", "body": self._pieces.last_piece})

    async def _keep_alive(self, send: Send) -> None:
        comment = ensure_bytes(ServerSentEvent(comment="keep-alive", sep=_SEPARATOR), _SEPARATOR)
        message = {"type": "http.response.body", "body": comment, "more_body": True}
        while self._is_active:
            async with self._send_lock:  # never send after the stream's end
                if self._is_active:
                    await send(message)
            await asyncio.sleep(self._keep_alive_s)
