"""Has the worker process prepare structures, over a socket of its own: a step does not wait for it.

One at a time: what is approved compiles within a deadline.
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

    async def prepare(self, structure: Structure) -> None:
        """Return when the worker has it ready, or is gone."""
        async with self._turn:
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
        """Whoever waits need not wait any more."""
        if self._streams is None:
            self._socket.close()
        else:
            self._streams[1].close()
