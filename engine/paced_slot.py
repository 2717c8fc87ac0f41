"""Even delivery: a step's tokens are released one by one, over the time that the next step is
expected to take, instead of all at once.

No token is held back once the next step's tokens are there or the request has ended, so a request
as a whole takes no longer.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.output_slot import OutputSlot
from engine.request import RequestOutput

_MEMORY = 0.7  # weight of the past in the expected time between steps
_LONGEST = 2.0  # cap on one gap, in expected times: a longer gap was a pause


class Timer(Protocol):
    """What `call_later` returns: a handle of a pending call."""

    def cancel(self) -> None:
        """Cancel the call."""


class PacedSlot(OutputSlot):
    """An output slot that releases a step's tokens evenly over time."""

    def __init__(
        self,
        interval: int = 1,
        *,
        clock: Callable[[], float] | None = None,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        """
        Args:
            interval: See `OutputSlot`.
            clock: Returns the time in seconds; None: the running event loop's.
            call_later: Calls a function after some seconds; None: the running event loop's.
        """
        super().__init__(interval)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._call_later = call_later or (
            lambda delay, call: asyncio.get_running_loop().call_later(delay, call)
        )
        self._held: deque[RequestOutput] = deque()
        self._timer: Timer | None = None
        self._step_s: float | None = None  # expected time between steps that brought tokens
        self._last_at: float | None = None
        self._gap_s = 0.0

    def put_step(self, outputs: Sequence[RequestOutput]) -> None:
        """See `OutputSlot.put_step`."""
        self._flush()
        self._learn(self._clock())
        if self._step_s is None or outputs[-1].finish_reason is not None:
            super().put_step(outputs)
            return
        self.put(outputs[0])
        self._held.extend(outputs[1:])
        self._gap_s = self._step_s / len(outputs)
        self._wait()

    def fail(self, error: Exception) -> None:
        """See `OutputSlot.fail`."""
        self._flush()
        super().fail(error)

    def _flush(self) -> None:
        """Release what is held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._held:
            self.put(self._held.popleft())

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
