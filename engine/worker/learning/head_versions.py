"""The versions of one exit head that is trained online, and the choice of the one that serves.

Trained weights serve only once they do better on positions that they were not trained on. They are
dropped again if the shipped weights come to do better, or if live acceptance falls.
"""

import logging
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from engine.model.exit_head import ExitHead, HeadWeights, RefinementWeights
from engine.worker.learning.candidate_trainer import CandidateTrainer, ReducedLmHead
from engine.worker.learning.examples import Examples
from engine.worker.learning.watch import AcceptanceWatch

logger = logging.getLogger(__name__)

_LEAST_GAIN = 0.002  # a gain in agreement that is worth packing the weights anew
# Standard errors by which weights must do better to be adopted, or do worse to be given up.
_ADOPTED, _SURE = 1.0, 2.0


class Change(Enum):
    """What happened to the serving weights."""

    NONE = auto()
    ADOPTED = auto()
    DROPPED = auto()


@dataclass(slots=True)
class Trial:
    """Whether each version was right about held-out drafts; one tensor [T] per piece."""

    candidate: list[Tensor]
    serving: list[Tensor]
    shipped: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Shares of held-out drafts that would have been accepted."""

    candidate: float = 0.0
    serving: float = 0.0
    shipped: float = 0.0


class HeadVersions:
    """An exit head with its shipped, serving, previous and candidate weights."""

    def __init__(
        self,
        head: ExitHead,
        exit_index: int,
        lm_head: ReducedLmHead,
        shipped: HeadWeights,
        refinement: RefinementWeights | None = None,
    ) -> None:
        self.version = 0  # 0: the shipped weights serve
        self.watch = AcceptanceWatch()
        self.agreement = Agreement()  # measured in the last trial
        self.serving = shipped
        self._head = head
        self._exit_index = exit_index
        self._shipped = shipped
        self._previous = (0, shipped)  # version and weights before the last change
        self._newest_version = 0
        self._trainer = CandidateTrainer(head, lm_head, shipped, refinement)
        self._trial = Trial([], [], [])

    @property
    def exit_layer(self) -> int:
        """The layer whose states the head reads."""
        return self._head.exit_layer

    def resume(self, weights: HeadWeights, version: int) -> None:
        """Continue with weights that an earlier worker learned."""
        self._serve(weights, version)
        self._trainer.restart(weights)

    def accumulate_gradient(self, examples: Examples, runs: Tensor) -> None:
        """See `CandidateTrainer.accumulate_gradient`."""
        self._trainer.accumulate_gradient(examples, self._exit_index, runs)

    def step(self) -> None:
        """Update the candidate; restart it from the serving weights if its gradient is not finite.

        See `CandidateTrainer.step`.
        """
        if not self._trainer.step():
            logger.warning("exit head at layer %d: no numbers; begins again", self.exit_layer)
            self._trainer.restart(self.serving)

    def evaluate(self, examples: Examples, runs: Tensor) -> None:
        """Do a piece of a trial, on positions that were not trained on."""
        trial, trainer, index = self._trial, self._trainer, self._exit_index
        trial.candidate.append(trainer.are_right(None, examples, index, runs))
        trial.serving.append(trainer.are_right(self.serving, examples, index, runs))
        if self.version:
            trial.shipped.append(trainer.are_right(self._shipped, examples, index, runs))

    def judge(self) -> Change:
        """End a trial: put the best weights into service."""
        trial, self._trial = self._trial, Trial([], [], [])
        if not trial.candidate:  # all sequences were too short
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
            self._trainer.restart(self._shipped)
            return Change.DROPPED
        if gain > max(_ADOPTED * error, _LEAST_GAIN):
            self._adopt(self._trainer.weights(), len(candidate))
            return Change.ADOPTED
        if -gain > _SURE * error:
            self._trainer.restart(self.serving)
        return Change.NONE

    def check_acceptance(self) -> Change:
        """Go back to the previous weights if live acceptance has fallen since they served."""
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
    """Return the mean of the paired differences, and its standard error."""
    difference = left - right
    return float(difference.mean()), float(difference.std() / max(len(difference), 1) ** 0.5)
