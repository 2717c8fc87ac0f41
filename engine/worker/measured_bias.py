"""How far steps of one kind take longer, as a whole, than their parts are said to."""

from math import exp, log

_RATE = 0.05  # of what a step tells; the first ones tell more
_MOST = 0.5  # logarithm of the factor that one step may claim: a pause is no price
_LEAST_S = 1e-9


class MeasuredBias:
    """Follows steps that were measured from begin to end: the host's work around the parts, and
    whatever else no part's cost knows of.
    """

    def __init__(self) -> None:
        self._log = 0.0
        self._num_seen = 0

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
        error = log(max(took_s, _LEAST_S) / max(modelled_s, _LEAST_S)) - self._log
        self._num_seen += 1
        rate = max(1.0 / (self._num_seen + 1), _RATE)
        self._log += rate * min(max(error, -_MOST), _MOST)
