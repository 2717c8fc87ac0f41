"""Watches how often a head is right in live traffic, before and after its weights changed."""

_WINDOW = 200  # verdicts
_ENOUGH = 150  # before anything is concluded
_MARGIN = 0.1  # a fall by more is not chance


class AcceptanceWatch:
    """One exit's; counts what a head expects behind the newest known token, drafted or not: which
    later drafts are looked at depends on what drafting costs, and on the head itself.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # exponentially weighted; None: nothing seen
        self._baseline: float | None = None  # what it was before the change
        self._count = 0

    def observe(self, *, was_right: bool) -> None:
        """A verdict."""
        self._count += 1
        if self.rate is None:
            self.rate = 0.0
        # The plain mean at first, so that the first verdicts weigh no more than others.
        self.rate += (was_right - self.rate) / min(self._count, _WINDOW)

    def restart(self) -> None:
        """The weights have changed."""
        self._baseline = self.rate if self._count >= _ENOUGH else None
        self._count = 0
        self.rate = None

    @property
    def has_fallen(self) -> bool:
        """Whether acceptance is lower than before the change."""
        if self._baseline is None or self.rate is None or self._count < _ENOUGH:
            return False
        return self.rate < self._baseline - _MARGIN
