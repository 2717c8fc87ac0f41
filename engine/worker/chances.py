"""P(accept) of every kind of guess: looked up, looked up and screened by a head, a head's best
token, and its second-best.

Defines the features of each kind and the seeds used before any traffic. Verification labels every
guess whose predecessors turned out right, drafted or not, so that what is learned is not biased
towards guesses that were drafted.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, log2
from typing import NamedTuple

from engine.model.exit_head import Calibration
from engine.model.noise import MEAN_GUMBEL
from engine.worker.calibrator import Calibrator
from engine.worker.prompt_lookup import Continuation

LOOKUP, SCREEN, SECOND = "look-up", "screen", "second"

_LEAST_SHARE = -12.0  # least logarithm of a share that is used as a feature
_LEAST = 0.002  # probabilities are kept this far from 0 and 1 before their logit is taken

# Seeds, fitted on output of the default model; what is learned replaces them.
_LOOKUP_SEED = {True: (-2.2, 0.35, 0.6, 2.6), False: (-2.2, 0.6, 0.2, 1.9, 0.45)}
_SCREEN_SEED = (0.7, 1.0, 0.25, 1.4, -1.2)
_HEAD_SEED = (0.0, 1.0, 0.0, 0.0)
_SECOND_SEED = {True: (0.05, 1.1, -0.3), False: (-0.2, 0.9, 0.1)}


class Chance(NamedTuple):
    """The estimated P(accept) of a guess, and what is needed to learn from its outcome."""

    probability: float
    kind: str | int  # LOOKUP, SCREEN, SECOND, or the exit's index
    is_greedy: bool
    features: tuple[float, ...]


class Chances:
    """All calibrators of a model: one per kind of guess, separately for greedy and sampled rows."""

    def __init__(self, exit_layers: Sequence[int], calibration: Mapping[int, Calibration]) -> None:
        self.on_verdict: Callable[[Chance, bool], None] | None = None  # told before learning
        self._seeds = [calibration[layer] for layer in exit_layers]
        self._calibrators: dict[tuple[str | int, bool], Calibrator] = {}
        for is_greedy in (True, False):
            seed = _LOOKUP_SEED[is_greedy]
            self._calibrators[LOOKUP, is_greedy] = Calibrator(seed, [0.5] * len(seed))
            self._calibrators[SCREEN, is_greedy] = Calibrator(
                _SCREEN_SEED, [0.5] * len(_SCREEN_SEED)
            )
            second = _SECOND_SEED[is_greedy]
            self._calibrators[SECOND, is_greedy] = Calibrator(second, [0.5] * len(second))
            for index in range(len(exit_layers)):
                self._calibrators[index, is_greedy] = Calibrator(_HEAD_SEED, (0.5, 0.1, 0.5, 0.5))

    def looked_up(
        self, found: Continuation, offset: int, recent: float, noise: float | None
    ) -> Chance:
        """Return the chance of the token `offset` places into a continuation.

        Args:
            recent: Share of the sequence's latest tokens that a look-up had right.
            noise: Sampling noise of the token at its position; None at temperature 0.
        """
        features: tuple[float, ...] = (
            1.0,
            log2(found.match + offset),
            recent - 0.5,
            found.agreement - 0.5 if offset == 0 else 0.5,
        )
        if noise is not None:
            features = (*features, noise - MEAN_GUMBEL)
        return self._chance(LOOKUP, noise is None, features)

    def screened(self, before: Chance, share: float, *, is_best: bool, is_outside: bool) -> Chance:
        """Return the chance of a look-up draft once a head has an opinion.

        Args:
            before: The draft's chance without that opinion.
            share: Logarithm of the head's probability of the draft; for a draft outside the reduced
                vocabulary, of all tokens outside together.
            is_best: Whether the head would have drafted the same.
            is_outside: Whether the draft is outside the reduced vocabulary.
        """
        features = (
            1.0,
            _logit(before.probability),
            max(share, _LEAST_SHARE) + 1.5,
            float(is_best),
            float(is_outside),
        )
        return self._chance(SCREEN, before.is_greedy, features)

    def of_head(
        self, exit_index: int, confidence: float, num_pending: int, *, is_greedy: bool
    ) -> Chance:
        """Return the chance of a head's best token after `num_pending` other drafts."""
        seed = self._seeds[exit_index]
        rates = seed.greedy if is_greedy else seed.sampled
        features = (
            1.0,
            _logit(_interpolate(seed.edges, rates, confidence)),
            float(num_pending == 1),
            float(num_pending > 1),
        )
        return self._chance(exit_index, is_greedy, features)

    def of_second(self, best: float, second: float, *, is_greedy: bool) -> Chance:
        """Return the chance of a head's second-best token.

        Args:
            best: The head's confidence in its best token.
            second: The head's confidence in this one.
        """
        return self._chance(SECOND, is_greedy, (1.0, _logit(second), _logit(best)))

    def learn(self, chance: Chance, *, accepted: bool) -> None:
        """Learn from the outcome of a guess."""
        if self.on_verdict is not None:
            self.on_verdict(chance, accepted)
        self._calibrators[chance.kind, chance.is_greedy].observe(chance.features, accepted)

    def _chance(self, kind: str | int, is_greedy: bool, features: tuple[float, ...]) -> Chance:
        probability = self._calibrators[kind, is_greedy].probability(features)
        return Chance(probability, kind, is_greedy, features)


def _logit(probability: float) -> float:
    if not _LEAST < probability < 1.0 - _LEAST:
        probability = _LEAST if probability <= _LEAST else 1.0 - _LEAST
    return log(probability / (1.0 - probability))


def _interpolate(edges: Sequence[float], rates: Sequence[float], confidence: float) -> float:
    """Interpolate linearly between rates, each of which belongs to the middle of its bin."""
    low, before = 0.0, None
    for edge, rate in zip(edges, rates, strict=True):
        middle = (low + edge) / 2
        if confidence <= middle:
            if before is None:
                return rate
            x0, y0 = before
            return y0 + (rate - y0) * (confidence - x0) / (middle - x0)
        low, before = edge, (middle, rate)
    return rates[-1]
