"""Confidence -> P(accept), by bins, learned from verification outcomes and seeded by the heads'
own calibration.
"""

from bisect import bisect_left
from collections.abc import Sequence

_PRIOR_WEIGHT = 20.0  # how many outcomes the seed counts for
_DECAY = 0.998  # per outcome in a bin: some 500 outcomes of memory, so drifting traffic is followed


class Calibrator:
    """One exit's accept rate by confidence bin."""

    def __init__(self, edges: Sequence[float], rates: Sequence[float]) -> None:
        assert len(edges) == len(rates), "one rate per bin"
        self._edges = list(edges)
        self._prior = list(rates)
        self._accepted = [0.0] * len(rates)
        self._seen = [0.0] * len(rates)

    def probability(self, confidence: float) -> float:
        """P(accept) of a draft whose predecessors are all accepted."""
        i = self._bin(confidence)
        weight = _PRIOR_WEIGHT
        return (self._accepted[i] + weight * self._prior[i]) / (self._seen[i] + weight)

    def observe(self, confidence: float, accepted: bool) -> None:
        """Learn one verified outcome."""
        i = self._bin(confidence)
        self._accepted[i] = self._accepted[i] * _DECAY + accepted
        self._seen[i] = self._seen[i] * _DECAY + 1.0

    def _bin(self, confidence: float) -> int:
        return min(bisect_left(self._edges, confidence), len(self._edges) - 1)
