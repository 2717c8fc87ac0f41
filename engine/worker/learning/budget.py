"""Limits learning to a share of the time that the worker computes.

Steps earn time and learning spends it. A reserve is kept for idle times; whatever has been saved
beyond it is spent between steps.
"""

_RESERVE_S = 0.1  # spent only at idle times
_MOST_S = 1.0  # the most that is saved


class Budget:
    """The seconds that learning has earned and not yet spent."""

    def __init__(self, share: float) -> None:
        """
        Args:
            share: Learning's share, 0 to 1, of the time that steps and learning take together.
        """
        self._per_second = share / (1.0 - share)
        self.saved_s = 0.0

    def earn(self, step_s: float) -> None:
        """Add what a step of `step_s` seconds earns."""
        self.saved_s = min(self.saved_s + step_s * self._per_second, _MOST_S)

    def spend(self, seconds: float) -> None:
        """Subtract time spent; a piece may overdraw the budget, and later steps pay it off."""
        self.saved_s -= seconds

    def allows(self, *, is_idle: bool) -> bool:
        """Whether another piece of learning may begin."""
        return self.saved_s > (0.0 if is_idle else _RESERVE_S)
