"""What learning may take: a share of the time that the worker computes.

Steps earn it, learning spends it. Some of it is kept for when nobody waits; what has gathered
beyond that is spent between steps.
"""

_RESERVE_S = 0.1  # kept for idle times
_MOST_S = 1.0  # more is not gathered


class Budget:
    """Seconds earned and not yet spent."""

    def __init__(self, share: float) -> None:
        """Args:
        share: Of steps and learning together, 0 to 1.
        """
        self._per_second = share / (1.0 - share)
        self.saved_s = 0.0

    def earn(self, step_s: float) -> None:
        """A step took so long."""
        self.saved_s = min(self.saved_s + step_s * self._per_second, _MOST_S)

    def spend(self, seconds: float) -> None:
        """Learning took so long; a piece may take more than there was, and is paid off later."""
        self.saved_s -= seconds

    def allows(self, *, is_idle: bool) -> bool:
        """Whether another piece may begin."""
        return self.saved_s > (0.0 if is_idle else _RESERVE_S)
