"""Server-sent events as a response: ready-made bytes, a comment in long silences, a deadline for
readers that read nothing.

Our own because every token passes through here: a library's checks and cancel scopes around each
event were half of what the server spent on a token (benchmarks/RESULTS.md).
"""

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_KEEP_ALIVE = b": keep-alive\n\n"


class ReaderStalled(Exception):
    """The client has read nothing for too long."""


def encode_event(data: str, name: str | None = None) -> bytes:
    """One event. The data is one line, as JSON is."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()


class EventStream(Response):
    """Sends events as they come until they or the client's patience end."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], *, keep_alive_s: float, write_timeout_s: float
    ) -> None:
        """Prepare the answer.

        Args:
            events: each item goes out at once, whole events only.
            keep_alive_s: longest silence; 0: however long.
            write_timeout_s: longest time that the client may take none of it.
        """
        self.status_code = 200
        self.background = None
        # Neither caches nor proxies may hold anything back.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._write_timeout_s = write_timeout_s
        self._sent_at = time.monotonic()
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; returns early when the client leaves.

        Raises:
            ReaderStalled: the client does not read.
        """
        work = (self._write(send), _disconnected(receive), self._watch(send))
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            self._sending_since = time.monotonic()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self._sending_since, self._sent_at = None, time.monotonic()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, send: Send) -> None:
        """One clock for the whole stream, instead of one per event."""
        while True:
            now = time.monotonic()
            await asyncio.sleep(max(0.0, self._next_check(now) - now))
            now = time.monotonic()
            if self._sending_since is not None:
                if now >= self._sending_since + self._write_timeout_s:
                    raise ReaderStalled
            elif self._keep_alive_s and now >= self._sent_at + self._keep_alive_s:
                await self._send_keep_alive(send)

    def _next_check(self, now: float) -> float:
        """When something could be due; what begins to be sent until then is not due earlier."""
        stalled_at = (self._sending_since or now) + self._write_timeout_s
        if not self._keep_alive_s or self._sending_since is not None:
            return stalled_at
        return min(stalled_at, self._sent_at + self._keep_alive_s)

    async def _send_keep_alive(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
        except TimeoutError:
            raise ReaderStalled from None
        self._sent_at = time.monotonic()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
