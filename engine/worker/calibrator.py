"""Features of a guess -> P(accept): logistic, seeded, and refitted after every verified outcome.

One Newton step per outcome on the posterior over the weights (an extended Kalman filter); weights
drift a little all the time, so changing traffic is followed.

Source: the online margin-to-acceptance fit of vLLM's acceptance estimator; the update is the
recursive Laplace approximation of logistic regression (Spiegelhalter and Lauritzen 1990).
"""

from collections.abc import Sequence
from math import exp, log
from operator import mul

_DRIFT = 1.0 / 400  # of the seed's variance, per outcome: some 400 outcomes of memory
_LEAST = 0.002  # no guess is ever certain, either way
_MOST_SCORE = log((1.0 - _LEAST) / _LEAST)


class Calibrator:
    """One kind of guess."""

    def __init__(self, weights: Sequence[float], variances: Sequence[float]) -> None:
        """Args:
        weights: The seed: of each feature, the first of which is 1 by convention.
        variances: How little each of them is trusted.
        """
        assert len(weights) == len(variances), "one variance per weight"
        self._weights = list(weights)
        self._most = list(variances)
        size = range(len(weights))
        self._covariance = [[variances[i] if i == j else 0.0 for j in size] for i in size]

    def probability(self, features: Sequence[float]) -> float:
        """P(accept) of a guess whose predecessors are all accepted."""
        score = sum(map(mul, self._weights, features))
        if score > _MOST_SCORE:
            return 1.0 - _LEAST
        return 1.0 / (1.0 + exp(-score)) if score > -_MOST_SCORE else _LEAST

    def observe(self, features: Sequence[float], accepted: bool) -> None:
        """Learn one verified outcome."""
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
