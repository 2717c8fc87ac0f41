"""Delivers an answer's events to the client, most of them within the call that brings an output.

The request's own task does what may have to wait: the beginning and the end, outputs that are long
to render, and all that comes while the client reads more slowly than tokens are made.
"""

import asyncio
from collections.abc import AsyncGenerator

from engine.request import RequestOutput
from server.answer_events import AnswerEvents, is_long
from server.generations import Generations
from server.http_protocol import BoundedProtocol


class Delivery:
    """Delivers the events of one answer."""

    def __init__(
        self, generations: Generations, events: AnswerEvents, connection: BoundedProtocol | None
    ) -> None:
        """
        Args:
            generations: The generations whose outputs are delivered.
            events: Encodes the outputs.
            connection: Where events can be sent at once; None: the request's task sends all.
        """
        self._generations = generations
        self._events = events
        self._text_event = events.text_event
        self._connection = connection
        self.last_piece = b""  # goes out with the stream's end, once `body` is exhausted

    async def body(self) -> AsyncGenerator[bytes, None]:
        """Yield what is left to the task, except the last piece.

        Events that are ready together go out together.
        """
        ready = b""
        try:
            ready = self._events.opening()
            if ready and not self._generations.ready().done():
                yield ready
                ready = b""
            while not self._generations.is_over:
                await self._generations.wait(self._send_at_once)
                for index, output in self._generations.take():
                    ready += await self._piece(index, output)
                if ready and not self._generations.is_over:  # else it goes out with the end
                    yield ready
                    ready = b""
            ready += self._events.ending()
        except Exception as error:
            ready += self._events.failure(error)
        self.last_piece = ready

    def _send_at_once(self, index: int, output: RequestOutput) -> bool:
        """Send an output's events if that needs no waiting.

        Returns:
            Whether they were sent; if not, the task sends them.
        """
        connection = self._connection
        if connection is None or output.finish_reason is not None:
            return False
        if not connection.can_take_piece:
            return False
        piece = self._text_event(index, output)
        if piece is None:
            if is_long(output):
                return False
            piece = self._events.piece(index, output)
        if piece:
            connection.send_piece(piece)
        return True

    async def _piece(self, index: int, output: RequestOutput) -> bytes:
        if is_long(output):
            return await asyncio.to_thread(self._events.piece, index, output)
        return self._events.piece(index, output)
