"""Logistic regression from the features of a guess to P(accept), updated after every outcome.

It starts from a seed. Every verified outcome makes one Newton step on the posterior over the
weights (an extended Kalman filter). The variance grows a little all the time, so that changing
traffic is followed.

Source: the online margin-to-acceptance fit of vLLM's acceptance estimator; the update is the
recursive Laplace approximation of logistic regression (Spiegelhalter and Lauritzen 1990).
"""

from collections.abc import Sequence
from math import exp, log
from operator import mul

_DRIFT = 1.0 / 400  # share of the seed's variance regained per outcome: a memory of some 400
_LEAST = 0.002  # no probability is closer than this to 0 or 1
_MOST_SCORE = log((1.0 - _LEAST) / _LEAST)


class Calibrator:
    """P(accept) of one kind of guess."""

    def __init__(self, weights: Sequence[float], variances: Sequence[float]) -> None:
        """
        Args:
            weights: The seed, one weight per feature; the first feature is 1 by convention.
            variances: Variance of each weight: the greater, the faster the weight is learned.
        """
        assert len(weights) == len(variances), "one variance per weight"
        self._weights = list(weights)
        self._most = list(variances)
        size = range(len(weights))
        self._covariance = [[variances[i] if i == j else 0.0 for j in size] for i in size]

    def probability(self, features: Sequence[float]) -> float:
        """Return P(accept) of a guess if all its predecessors are accepted."""
        score = sum(map(mul, self._weights, features))
        if score > _MOST_SCORE:
            return 1.0 - _LEAST
        return 1.0 / (1.0 + exp(-score)) if score > -_MOST_SCORE else _LEAST

    def observe(self, features: Sequence[float], accepted: bool) -> None:
        """Learn from one verified outcome."""
        chance = self.probability(features)
        pull = [sum(map(mul, row, features)) for row in self._covariance]
        curvature = chance * (1.0 - chance)
        scale = 1.0 + curvature * sum(map(mul, pull, features))
        error = (accepted - chance) / scale
        self._weights = [w + p * error for w, p in zip(self._weights, pull, strict=True)]
        for i, row in enumerate(self._covariance):
            shrink = curvature * pull[i] / scale
            row[:] = [c - shrink * p for c, p in zip(row, pull, strict=True)]
            row[i] = min(row[i] + _DRIFT * self._most[i], self._most[i])
