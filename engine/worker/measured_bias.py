"""How far steps of one kind take longer, as a whole, than their parts are said to."""

from math import exp, log

_RATE = 0.05  # of what a step tells; the first ones tell more
_MOST = 0.5  # logarithm of the factor that one step may claim: a pause is no price
_MOST_AT_FIRST = 1.5
_FEWEST = 2  # steps that tell anything
_LEAST_S = 1e-9


class MeasuredBias:
    """Follows steps that were measured from begin to end: the host's work around the parts, and
    whatever else no part's cost knows of.
    """

    def __init__(self, like: "MeasuredBias | None" = None) -> None:
        """Args:
        like: Of similar steps: it is begun with, and forgotten as fast as nothing.
        """
        self._log: float = 0.0 if like is None else like._log
        self._num_seen = 0

    @property
    def is_begun(self) -> bool:
        """Whether there is any measurement that another one agrees with, or corrects."""
        return self._num_seen >= _FEWEST

    @property
    def is_known(self) -> bool:
        """Whether one more step changes little."""
        return self._num_seen * _RATE >= 1.0

    @property
    def factor(self) -> float:
        """What a step takes for every second that its parts are said to take."""
        return exp(self._log)

    def observe(self, modelled_s: float, took_s: float) -> None:
        """Learn what a step took."""
        error = self._error(modelled_s, took_s)
        self._num_seen += 1
        self._log += max(1.0 / (self._num_seen + 1), _RATE) * error

    def plausible(self, modelled_s: float, took_s: float) -> float:
        """Seconds that a step may have taken: what it took, unless that was a pause."""
        return modelled_s * exp(self._log + self._error(modelled_s, took_s))

    def _error(self, modelled_s: float, took_s: float) -> float:
        """Logarithm of how far a step took longer than was to be expected."""
        most = _MOST if self.is_known else _MOST_AT_FIRST
        error = log(max(took_s, _LEAST_S) / max(modelled_s, _LEAST_S)) - self._log
        return min(max(error, -most), most)
