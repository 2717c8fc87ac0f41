"""What evaluating an exit has brought lately, and when to try again where it was left out."""

_FIRST_WORTH = 0.15  # expected tokens of an evaluation before there was any
_WORTH_WINDOW = 0.95  # decay of the worth per evaluated row
_FEWEST_LEFT_OUT = 12  # evaluations left out, at least, between two trials
_SOON = 8  # the same before the first trial, and after one that was worth its time
_MOST_FIRST_SHARE = 1.5  # plain steps that the first trial may take to be made that soon
_MOST_TRIAL_TIME = 0.005  # share of the time between two trials that a trial may take


class ExitAccount:
    """What evaluating one exit has brought lately.

    Attributes:
        worth: Expected tokens, less what the drafts cost, that evaluating a row brings if all of
            the row's drafts are sure to be accepted.
    """

    def __init__(self) -> None:
        self.worth = _FIRST_WORTH
        self._num_left_out = 0
        # Whether the last evaluation was worth its time; None: there was none.
        self._has_paid: bool | None = None

    def is_due(self, share: float) -> bool:
        """Whether to evaluate just to find out whether that would pay again.

        A trial that was worth its time is soon followed by another one, whatever that costs. It
        does not follow at once: where one token is easy to predict, the next one may never be. The
        first is made soon if that costs little, for the worth is only assumed before it.

        Args:
            share: Share of a plain step's time that an evaluation takes.
        """
        is_first = self._has_paid is None
        if self._has_paid or (is_first and share <= _MOST_FIRST_SHARE):
            return self._num_left_out >= _SOON
        return self._num_left_out >= max(_FEWEST_LEFT_OUT, share / _MOST_TRIAL_TIME)

    def leave_out(self) -> None:
        """Count a step without an evaluation."""
        self._num_left_out += 1

    def add(self, gain: float, offered: float, *, pays: bool) -> None:
        """Learn what an evaluation brought.

        Args:
            gain: Expected tokens, less what the drafts cost in tokens.
            offered: Sum of the shares of an evaluation's usual worth that its rows offered.
            pays: Whether evaluations that bring as much are worth their time.
        """
        if offered > 0.0:  # many rows at once tell as much as one row many times
            self._num_left_out = 0
            self._has_paid = pays
            keep = _WORTH_WINDOW**offered
            self.worth = keep * self.worth + (1.0 - keep) * gain / offered
