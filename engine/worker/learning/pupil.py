"""One exit's head as it learns: the weights that serve, those in training, those to fall back on.

Only what does better on positions that it was not trained on serves; what does worse than the
shipped weights, or brings acceptance down, is dropped again.
"""

import logging
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from engine.model.exit_head import ExitHead, HeadWeights, RefinementWeights
from engine.worker.learning.examples import Examples
from engine.worker.learning.trainee import Lens, Trainee
from engine.worker.learning.watch import AcceptanceWatch

logger = logging.getLogger(__name__)

_LEAST_GAIN = 0.002  # agreement that is worth packing weights anew
_ADOPTED, _SURE = 1.0, 2.0  # standard errors


class Change(Enum):
    """What became of the serving weights."""

    NONE = auto()
    ADOPTED = auto()
    DROPPED = auto()


@dataclass(slots=True)
class Trial:
    """Who was right about held-out drafts: one entry per piece."""

    candidate: list[Tensor]
    serving: list[Tensor]
    shipped: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Shares of held-out drafts that would have been accepted."""

    candidate: float = 0.0
    serving: float = 0.0
    shipped: float = 0.0


class Pupil:
    """See above."""

    def __init__(
        self,
        head: ExitHead,
        exit_index: int,
        lens: Lens,
        shipped: HeadWeights,
        refinement: RefinementWeights | None = None,
    ) -> None:
        self.version = 0  # 0: the shipped weights serve
        self.watch = AcceptanceWatch()
        self.agreement = Agreement()  # in the last trial
        self.serving = shipped
        self._head = head
        self._exit_index = exit_index
        self._shipped = shipped
        self._previous = (0, shipped)  # version and weights before the last change
        self._newest_version = 0
        self._trainee = Trainee(head, lens, shipped, refinement)
        self._trial = Trial([], [], [])

    @property
    def exit_layer(self) -> int:
        """The layer whose states the head reads."""
        return self._head.exit_layer

    def resume(self, weights: HeadWeights, version: int) -> None:
        """Go on where an earlier worker was."""
        self._serve(weights, version)
        self._previous = (0, self._shipped)
        self._trainee.restart(weights)

    def study(self, examples: Examples, runs: Tensor) -> None:
        """See `Trainee.study`."""
        self._trainee.study(examples, self._exit_index, runs)

    def step(self) -> None:
        """See `Trainee.step`; weights that have become no numbers begin again."""
        if not self._trainee.step():
            logger.warning("exit head at layer %d: no numbers; begins again", self.exit_layer)
            self._trainee.restart(self.serving)

    def sit(self, examples: Examples, runs: Tensor) -> None:
        """A piece of a trial, on positions that were not studied."""
        trial, trainee, index = self._trial, self._trainee, self._exit_index
        trial.candidate.append(trainee.are_right(None, examples, index, runs))
        trial.serving.append(trainee.are_right(self.serving, examples, index, runs))
        if self.version:
            trial.shipped.append(trainee.are_right(self._shipped, examples, index, runs))

    def judge(self) -> Change:
        """The end of a trial: the best weights serve."""
        trial, self._trial = self._trial, Trial([], [], [])
        if not trial.candidate:  # nothing but sequences that are too short
            return Change.NONE
        candidate, serving = _joined(trial.candidate), _joined(trial.serving)
        shipped = _joined(trial.shipped) if trial.shipped else serving
        self.agreement = Agreement(
            candidate=float(candidate.mean()),
            serving=float(serving.mean()),
            shipped=float(shipped.mean()),
        )
        gain, error = _difference(candidate, serving)
        loss, loss_error = _difference(shipped, serving)
        if loss > _SURE * loss_error:
            self._drop((0, self._shipped), "the shipped weights do better again")
            self._trainee.restart(self._shipped)
            return Change.DROPPED
        if gain > max(_ADOPTED * error, _LEAST_GAIN):
            self._adopt(self._trainee.weights(), len(candidate))
            return Change.ADOPTED
        if -gain > _SURE * error:
            self._trainee.restart(self.serving)
        return Change.NONE

    def check_acceptance(self) -> Change:
        """Go back to the weights before if live acceptance has fallen since."""
        if not self.version or not self.watch.has_fallen:
            return Change.NONE
        self._drop(self._previous, "acceptance has fallen")
        return Change.DROPPED

    def _adopt(self, weights: HeadWeights, num_drafts: int) -> None:
        self._previous = (self.version, self.serving)
        self._newest_version += 1
        self._serve(weights, self._newest_version)
        logger.info(
            "exit head at layer %d: version %d agrees with %.3f of %d held-out drafts, not %.3f",
            self.exit_layer,
            self.version,
            self.agreement.candidate,
            num_drafts,
            self.agreement.serving,
        )

    def _drop(self, to: tuple[int, HeadWeights], why: str) -> None:
        logger.info(
            "exit head at layer %d: version %d is dropped for %d: %s",
            self.exit_layer,
            self.version,
            to[0],
            why,
        )
        version, weights = to
        self._previous = (0, self._shipped)
        self._serve(weights, version)

    def _serve(self, weights: HeadWeights, version: int) -> None:
        self._head.adopt(weights)
        self.serving, self.version = weights, version
        self._newest_version = max(self._newest_version, version)
        self.watch.restart()


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).float()


def _difference(left: Tensor, right: Tensor) -> tuple[float, float]:
    """Mean of the paired difference, and its standard error."""
    difference = left - right
    return float(difference.mean()), float(difference.std() / max(len(difference), 1) ** 0.5)
