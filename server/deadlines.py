"""How long a request may wait for its turn, and how long it may take in all."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from engine.errors import DeadlinePassed, QueuedTooLong

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds from the request's arrival; 0 = any time."""

    queue_s: float
    total_s: float

    @property
    def are_set(self) -> bool:
        """Whether there is any."""
        return self.queue_s > 0 or self.total_s > 0


async def within(
    deadlines: Deadlines,
    outputs: AsyncGenerator[Item, None],
    has_started: Callable[[], bool],
) -> AsyncGenerator[Item, None]:
    """The same outputs, but not for longer than allowed; `outputs` is closed in any case.

    Args:
        has_started: whether any of what makes the outputs has had its turn.

    Raises:
        QueuedTooLong: nothing came to run in time.
        DeadlinePassed: it is not done in time.
    """
    loop = asyncio.get_running_loop()
    now = loop.time()
    turn = now + deadlines.queue_s if deadlines.queue_s else None
    end = now + deadlines.total_s if deadlines.total_s else None
    async with aclosing(outputs):
        item = await _first(outputs, turn, end, has_started)
        while item is not None:
            yield item
            try:
                async with asyncio.timeout_at(end):
                    item = await anext(outputs, None)
            except TimeoutError:
                raise DeadlinePassed from None


async def _first(
    outputs: AsyncGenerator[Item, None],
    turn: float | None,
    end: float | None,
    has_started: Callable[[], bool],
) -> Item | None:
    """The first output, for which a request may have to wait its turn: until `turn`, no longer."""
    loop = asyncio.get_running_loop()
    upcoming = asyncio.ensure_future(anext(outputs, None))
    try:
        if turn is not None:
            await asyncio.wait({upcoming}, timeout=turn - loop.time())
            if not upcoming.done() and not has_started():
                raise QueuedTooLong
        left = None if end is None else max(0.0, end - loop.time())
        await asyncio.wait({upcoming}, timeout=left)
        if not upcoming.done():
            raise DeadlinePassed
        return upcoming.result()
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
