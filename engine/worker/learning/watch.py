"""Watches how often a head is right in live traffic, before and after its weights change."""

_WINDOW = 200  # observations that the average rate covers
_ENOUGH = 150  # observations before anything is concluded
_MARGIN = 0.1  # a fall of the rate by more than this is not chance


class AcceptanceWatch:
    """The acceptance rate of the first token that one exit's head expects, drafted or not.

    Later drafts do not count: which of them the head is asked for depends on what drafting costs,
    and on the head itself.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # exponentially weighted; None: nothing observed yet
        self._baseline: float | None = None  # the rate before the weights changed
        self._count = 0

    def observe(self, *, was_right: bool) -> None:
        """Count whether an expected token was right."""
        self._count += 1
        if self.rate is None:
            self.rate = 0.0
        # The plain mean at first, so that the first observations weigh no more than others.
        self.rate += (was_right - self.rate) / min(self._count, _WINDOW)

    def restart(self) -> None:
        """Begin to observe new weights, with the rate so far as the baseline."""
        self._baseline = self.rate if self._count >= _ENOUGH else None
        self._count = 0
        self.rate = None

    @property
    def has_fallen(self) -> bool:
        """Whether acceptance is lower than before the weights changed."""
        if self._baseline is None or self.rate is None or self._count < _ENOUGH:
            return False
        return self.rate < self._baseline - _MARGIN
