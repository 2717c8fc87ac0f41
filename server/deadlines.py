"""How long a request may wait for its turn, and how long it may take in all."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import DeadlinePassed, EngineError, QueuedTooLong


@dataclass(slots=True)
class Deadlines:
    """A request's two time limits, in seconds from the call of `set`; 0 means no limit."""

    queue_s: float
    total_s: float
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)

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

        loop = asyncio.get_running_loop()
        if self.queue_s > 0:
            self._timers.append(loop.call_later(self.queue_s, end_turn))
        if self.total_s > 0:
            self._timers.append(loop.call_later(self.total_s, on_passed, DeadlinePassed()))

    def cancel(self) -> None:
        """Stop the timers. Idempotent."""
        while self._timers:
            self._timers.pop().cancel()
