"""What parts of a step take on a device that computes after calls have returned.

Time can be told only where the device is waited for: at looks of exits, and at the end of a step.
What passed since it was last waited for, less what the parts launched since are known to take, is
the price of the part that waited, the host's work around it included.
"""

from collections.abc import Callable

_MOST_TOKENS = 64  # of a part whose cost was measured, and not supposed


class DeviceQueue:
    """Parts launched and not waited for yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args:
        clock: In seconds.
        """
        self._clock = clock
        self._since = clock()
        self._seconds = 0.0
        self._is_known = False

    def begin(self, *, is_idle: bool = True) -> None:
        """A step begins.

        Args:
            is_idle: Nothing is launched; else there is no telling what the step's parts take.
        """
        self._since = self._clock()
        self._seconds = 0.0
        self._is_known = is_idle

    def add(self, num_tokens: int, seconds: float) -> None:
        """A part was launched that is known to take so long."""
        self._seconds += seconds
        self._is_known = self._is_known and num_tokens <= _MOST_TOKENS

    def wait(self) -> float | None:
        """The device was waited for: seconds of the part that did; None: they cannot be told."""
        now = self._clock()
        took = max(now - self._since - self._seconds, 0.0)
        self._since, self._seconds = now, 0.0
        return took if self._is_known else None
