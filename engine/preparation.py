"""Has the worker process prepare structures, over a separate socket, so that no step waits for it.

Structures are prepared one at a time: each was approved, so it compiles within a deadline.
"""

import asyncio
import socket

from engine.request import Structure
from engine.wire import HEADER, Wire, frame_length


class Preparation:
    """The server's end of the socket."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._wire = Wire()
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._exchange: asyncio.Task[None] | None = None  # the latest

    async def prepare(self, structure: Structure) -> None:
        """Return when the worker has the structure ready, or cannot compile it, or is gone."""
        await self._turn.acquire()
        exchange = self._exchange = asyncio.create_task(self._have_prepared(structure))
        exchange.add_done_callback(lambda _: self._turn.release())
        # Whoever leaves meanwhile does not cut it short: its answer would be taken for the next's.
        await asyncio.shield(exchange)

    async def _have_prepared(self, structure: Structure) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._socket)
        reader, writer = self._streams
        try:
            writer.write(self._wire.encode(structure))
            await writer.drain()
            length, _ = frame_length(await reader.readexactly(HEADER.size))
            await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return

    def close(self) -> None:
        """Close the socket; whoever waits returns."""
        if self._streams is None:
            self._socket.close()
        else:
            self._streams[1].close()
