"""What looking at an exit has brought lately, and when to try again where it was left out."""

_FIRST_WORTH = 0.15  # expected tokens of a look, before any was taken
_WORTH_WINDOW = 0.95
_UNSEEN = 32  # looks left out in a row before one is taken to see whether it would pay again,
_WAGER = 0.005  # and so many that it takes less than this share of their steps' time


class LookAccount:
    """What looking at one exit has brought lately: expected tokens, what it cost taken off, per
    look at a row all of whose drafts are sure to stand.
    """

    def __init__(self) -> None:
        self.worth = _FIRST_WORTH
        self._num_left_out = 0

    def is_due(self, share: float) -> bool:
        """Whether a look is to be taken to see whether it would pay again.

        Args:
        share: Of a plain step's time that a look takes.
        """
        return self._num_left_out >= max(_UNSEEN, share / _WAGER)

    def leave_out(self, count: int = 1) -> None:
        """So many steps have had none."""
        self._num_left_out += count

    def add(self, gain: float, offered: float) -> None:
        """A look was taken.

        Args:
            gain: Expected tokens, less what the drafts cost in tokens.
            offered: Sum of the shares of a look's usual worth that its rows offered.
        """
        if offered > 0.0:  # many rows at once tell as much as one row many times
            self._num_left_out = 0
            keep = _WORTH_WINDOW**offered
            self.worth = keep * self.worth + (1.0 - keep) * gain / offered
