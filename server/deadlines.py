"""How long a request may wait for its turn, and how long it may take in all."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TypeVar

from engine.errors import DeadlinePassed, EngineError, QueuedTooLong

Result = TypeVar("Result")


@dataclass(slots=True)
class Deadlines:
    """A request's two time limits, in seconds from their first use; 0 means no limit."""

    queue_s: float
    total_s: float
    _start_s: float | None = None  # by the event loop's clock
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)

    async def keep(self, prepare: Callable[[], Awaitable[Result]]) -> Result:
        """Await what comes before the request is queued.

        Args:
            prepare: Called once, or never if the caller leaves before this has begun.

        Raises:
            QueuedTooLong: It takes longer than the request may wait for its turn.
            DeadlinePassed: It takes longer than the request may take in all.
        """
        start_s = self._begin()
        limits = [
            (limit_s, error)
            for limit_s, error in ((self.total_s, DeadlinePassed), (self.queue_s, QueuedTooLong))
            if limit_s > 0
        ]
        if not limits:
            return await prepare()
        limit_s, error = min(limits, key=itemgetter(0))
        try:
            async with asyncio.timeout_at(start_s + limit_s) as limit:
                return await prepare()
        except TimeoutError:
            if limit.expired():
                raise error from None
            raise

    def set(
        self, has_started: Callable[[], bool], on_passed: Callable[[EngineError], object]
    ) -> None:
        """Start the timers.

        Args:
            has_started: Whether the request has had its turn.
            on_passed: Called with QueuedTooLong or DeadlinePassed, once at most each.
        """

        def end_turn() -> None:
            if not has_started():
                on_passed(QueuedTooLong())

        loop, start_s = asyncio.get_running_loop(), self._begin()
        if self.queue_s > 0:
            self._timers.append(loop.call_at(start_s + self.queue_s, end_turn))
        if self.total_s > 0:
            self._timers.append(loop.call_at(start_s + self.total_s, on_passed, DeadlinePassed()))

    def cancel(self) -> None:
        """Stop the timers. Idempotent."""
        while self._timers:
            self._timers.pop().cancel()

    def _begin(self) -> float:
        if self._start_s is None:
            self._start_s = asyncio.get_running_loop().time()
        return self._start_s
