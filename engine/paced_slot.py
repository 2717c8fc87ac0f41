"""Even delivery: tokens that one step brought leave one after the other, over the time that the
next step is expected to take, instead of in a burst and then nothing.

Nothing is held longer than until the next step's tokens are there, and nothing at all once the
request has ended, so a request takes no longer; only its tokens but the last of every step arrive
apart.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.output_slot import OutputSlot
from engine.request import RequestOutput

_MEMORY = 0.7  # of the expected time between steps, per step
_LONGEST = 2.0  # times the expected: a longer time was a pause, not a step


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None:
        """Forget it."""


class PacedSlot(OutputSlot):
    """An output slot that tokens enter evenly."""

    def __init__(
        self,
        interval: int = 1,
        *,
        clock: Callable[[], float] | None = None,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        """Args: clock, call_later: the running event loop's, unless given (tests)."""
        super().__init__(interval)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._call_later = call_later or (
            lambda delay, call: asyncio.get_running_loop().call_later(delay, call)
        )
        self._held: deque[RequestOutput] = deque()
        self._timer: Timer | None = None
        self._step_s: float | None = None  # expected, between steps that brought something
        self._last_at: float | None = None
        self._gap_s = 0.0

    def put_step(self, outputs: Sequence[RequestOutput]) -> None:
        """See `OutputSlot.put_step`."""
        self.flush()
        self._learn(self._clock())
        if self._step_s is None or outputs[-1].finish_reason is not None:
            super().put_step(outputs)
            return
        self.put(outputs[0])
        self._held.extend(outputs[1:])
        self._gap_s = self._step_s / len(outputs)
        self._wait()

    def flush(self) -> None:
        """Hold nothing back any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._held:
            self.put(self._held.popleft())

    def fail(self, error: Exception) -> None:
        """See `OutputSlot.fail`."""
        self.flush()
        super().fail(error)

    def _learn(self, now: float) -> None:
        if self._last_at is not None:
            passed = now - self._last_at
            known = passed if self._step_s is None else self._step_s
            self._step_s = _MEMORY * known + (1.0 - _MEMORY) * min(passed, _LONGEST * known)
        self._last_at = now

    def _wait(self) -> None:
        self._timer = self._call_later(self._gap_s, self._release) if self._held else None

    def _release(self) -> None:
        self.put(self._held.popleft())
        self._wait()
