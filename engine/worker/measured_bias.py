"""Measures by what factor whole steps of one kind take longer than their parts."""

from math import exp, log

_RATE = 0.05  # share of a step's error that is learned; the first steps count more
_MOST_RATE = 0.3  # the same of a step that stands for many, because such steps are rare
_MOST = 0.5  # greatest logarithm of an observed factor; a pause of the machine is not a cost
_MOST_AT_FIRST = 1.5  # the same while little has been measured
_FEWEST = 2  # fewest steps that make a measurement
_LEAST_S = 1e-9


class MeasuredBias:
    """The factor between the measured seconds of whole steps and the modelled ones.

    It covers the host's work around the parts, and whatever else the parts' costs leave out.
    """

    def __init__(self, like: "MeasuredBias | None" = None) -> None:
        """
        Args:
            like: The bias of similar steps, to start with; measurements replace it just as fast as
                they replace 1.0.
        """
        self._log: float = 0.0 if like is None else like._log
        self._num_seen = 0

    @property
    def is_begun(self) -> bool:
        """Whether at least two steps were measured, so that one can correct the other."""
        return self._num_seen >= _FEWEST

    @property
    def is_known(self) -> bool:
        """Whether one more step changes little."""
        return self._num_seen * _RATE >= 1.0

    @property
    def factor(self) -> float:
        """Measured seconds of a step per modelled second."""
        return exp(self._log)

    def observe(self, modelled_s: float, took_s: float, num_steps: int = 1) -> None:
        """Learn what a step took.

        Args:
            num_steps: How many steps it stands for: all since the one observed before it.
        """
        error = self._error(modelled_s, took_s)
        self._num_seen += 1
        rate = min(_RATE * num_steps, _MOST_RATE)
        self._log += max(1.0 / (self._num_seen + 1), rate) * error

    def plausible(self, modelled_s: float, took_s: float) -> float:
        """Return the seconds that a step took, limited if there was a pause of the machine."""
        return modelled_s * exp(self._log + self._error(modelled_s, took_s))

    def _error(self, modelled_s: float, took_s: float) -> float:
        """Return the logarithm of the factor by which a step took longer than expected, limited."""
        most = _MOST if self.is_known else _MOST_AT_FIRST
        error = log(max(took_s, _LEAST_S) / max(modelled_s, _LEAST_S)) - self._log
        return min(max(error, -most), most)
