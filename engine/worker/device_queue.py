"""Times the parts of a step on a device that computes after calls have returned.

Time can be measured only where the host waits for the device: at the evaluation of an exit, and at
the end of a step. The time since the last wait, less what the parts launched since are known to
take, is the cost of the part that waited, the host's work around it included.
"""

from collections.abc import Callable

_MOST_TOKENS = 64  # most tokens of a part whose cost was measured, not extrapolated


class DeviceQueue:
    """The parts that have been launched and not been waited for yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """
        Args:
            clock: In seconds.
        """
        self._clock = clock
        self._since = clock()
        self._seconds = 0.0
        self._is_known = False

    def begin(self, *, is_idle: bool = True) -> None:
        """Begin a step.

        Args:
            is_idle: Whether the device has nothing to do; otherwise the step cannot be timed.
        """
        self._since = self._clock()
        self._seconds = 0.0
        self._is_known = is_idle

    def add(self, num_tokens: int, seconds: float) -> None:
        """Note that a part was launched, and the seconds that it is known to take."""
        self._seconds += seconds
        self._is_known = self._is_known and num_tokens <= _MOST_TOKENS

    def wait(self) -> float | None:
        """Return the seconds of the part that has just waited for the device; None: unknown."""
        now = self._clock()
        took = max(now - self._since - self._seconds, 0.0)
        self._since, self._seconds = now, 0.0
        return took if self._is_known else None
