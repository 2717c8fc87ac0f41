"""Seconds by number of tokens: measured at a few counts, then adapted as the load changes.

A curve is linear between its points and goes on with the last slope beyond them. An observation
while serving moves the points beside it most and all others a little, so that a count that is never
tried does not keep the cost of a busier hour.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import exp, log

_POINT_RATE = 0.05  # share of an observed error by which the points beside it move
_SHAPE_RATE = 0.03  # share of an observed error by which the whole curve moves
_MOST = 0.5  # greatest logarithm of an observed factor; a pause of the machine is not a cost
_LEAST_S = 1e-9


class CostCurve:
    """The cost of one part of a step by number of tokens.

    It never falls as tokens are added: noise must not make drafts look free.
    """

    def __init__(self, counts: Sequence[int], seconds: Sequence[float]) -> None:
        self._counts = list(counts)
        self._points = [max(value, _LEAST_S) for value in seconds]  # as observed; they may fall
        self._factor = 1.0  # on all points; far more observations move it than any point
        self._seconds: list[float] = []
        self._settle()

    @classmethod
    def of(cls, seconds: Mapping[int, float]) -> "CostCurve":
        """Return the curve through measured seconds by number of tokens."""
        counts = sorted(seconds)
        return cls(counts, [seconds[count] for count in counts])

    def __call__(self, num_tokens: int) -> float:
        """Return the seconds for `num_tokens`; 0.0 for no tokens."""
        if num_tokens <= 0:
            return 0.0
        counts, seconds = self._counts, self._seconds
        if num_tokens <= counts[0] or len(counts) == 1:
            return seconds[0] * self._factor
        right = bisect_left(counts, num_tokens, 1, len(counts) - 1)
        x0, x1, y0, y1 = counts[right - 1], counts[right], seconds[right - 1], seconds[right]
        return (y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0)) * self._factor

    def observe(self, num_tokens: int, seconds: float) -> float:
        """Learn what `num_tokens` took; nothing is learned beyond the curve's points.

        Returns:
            The logarithm of the factor by which the curve was off, within bounds; 0.0 beyond its
            points.
        """
        counts = self._counts
        if not 0 < num_tokens <= counts[-1]:
            return 0.0
        error = log(max(seconds, _LEAST_S) / self(num_tokens))
        error = min(max(error, -_MOST), _MOST)
        right = bisect_left(counts, num_tokens)
        left = right - 1 if right and counts[right] != num_tokens else right
        for point in {left, right}:
            self._points[point] *= exp(_POINT_RATE * error)
        self._settle()
        self.scale(_SHAPE_RATE * error)
        return error

    def scale(self, logarithm: float) -> None:
        """Multiply all costs by the same factor, given its logarithm."""
        self._factor *= exp(logarithm)

    @property
    def points(self) -> list[tuple[int, float]]:
        """The points that the curve goes through, as tokens and seconds."""
        return [(count, self(count)) for count in self._counts]

    def _settle(self) -> None:
        self._seconds = list(accumulate(self._points, max))
