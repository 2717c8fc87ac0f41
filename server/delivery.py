"""How an answer's events reach the client: most within the call that brings them, the rest in the
request's own task.

In its own task is done what may have to wait: the beginning and the end, what is long to render,
and whatever comes while the client does not read as fast as tokens are made.
"""

import asyncio
from collections.abc import AsyncGenerator

from engine.request import RequestOutput
from server.answer_events import AnswerEvents, is_long
from server.generations import Generations
from server.http_protocol import BoundedProtocol


class Delivery:
    """Of one answer."""

    def __init__(
        self, generations: Generations, events: AnswerEvents, connection: BoundedProtocol | None
    ) -> None:
        """Args: connection: None: everything is left to the request's task."""
        self._generations = generations
        self._events = events
        self._text_event = events.text_event
        self._connection = connection
        self.last_piece = b""  # what goes out with the stream's end, once `body` is over

    async def body(self) -> AsyncGenerator[bytes, None]:
        """What is left to the task, but the last piece; events that are ready together go out
        together.
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
        """Send an output's events if nothing has to be waited for.

        Returns:
            Whether that was done; else they are the task's affair.
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
