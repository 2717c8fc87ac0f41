"""Trains the candidate weights of one exit head: floats, beside the packed weights that serve.

The backend computes the large products, with the reduced LM head and with its transpose. The
gradient is written out, so that no autograd graph is kept. (`training.train_head` trains heads
offline.) This module knows tensors only, no traffic and no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.model.exit_head import WEIGHT_NAMES, ExitHead, HeadWeights, RefinementWeights
from engine.worker.learning.examples import Examples
from engine.worker.learning.float_refinement import FloatRefinement, Refined
from engine.worker.learning.unit_rms import inverse_rms, unit_rms_backward

_RATE = 5e-4  # Adam's learning rate, for updates of about 32 examples
_DECAYS = (0.9, 0.99)  # Adam's decay rates of the mean and of the mean square
_TINY = 1e-8
_MOST_NORM = 1.0  # gradients with a larger norm, averaged over the examples, are scaled down


@dataclass(frozen=True, slots=True)
class ReducedLmHead:
    """The LM head over the reduced vocabulary, forward and backward; shared by all exits."""

    head: ExitHead  # any exit's: all of them hold the packed rows and the model's final norm
    back: Any  # [E, V'] packed: the transpose of the rows, the final norm's weight folded in

    @classmethod
    def of(cls, head: ExitHead, rows: Tensor) -> "ReducedLmHead":
        """Pack the transposed rows on the backend of the head.

        Args:
            head: Any exit's head.
            rows: [V', E], rows of the LM head.
        """
        folded = rows.float() * head.final_norm.float()
        return cls(head, head.ops.pack_head(folded.T.contiguous()))

    def logits(self, state: Tensor) -> Tensor:
        """Return the logits [T, V'] float32 of estimated last states [T, E]."""
        head, ops = self.head, self.head.ops
        state = state.to(ops.dtype)
        logits: Tensor = ops.linear(state, head.lm_head, norm=head.final_norm, eps=head.eps)
        return logits.float()

    def backward(self, errors: Tensor) -> Tensor:
        """Turn the gradient of logits [T, V'] into that of unit-RMS states [T, E], in float32."""
        ops = self.head.ops
        return ops.linear(errors.to(ops.dtype), self.back).float()


@dataclass(frozen=True, slots=True)
class _Draft:
    """The last draft of each run, with what the backward pass needs."""

    hidden: Tensor  # [T, E], the scaled states at the exit
    previous: Tensor  # [T, E], the scaled states of the tokens before
    state: Tensor  # [T, E], the estimated last states
    refined: Refined | None  # the refinement's result; None without a refinement


class CandidateTrainer:
    """Trains one exit head's weights by Adam."""

    def __init__(
        self,
        head: ExitHead,
        lm_head: ReducedLmHead,
        weights: HeadWeights,
        refinement: RefinementWeights | None = None,
    ) -> None:
        """
        Args:
            head: The head that serves; its input scales are used, and its weights left alone.
            lm_head: The reduced LM head.
            weights: The weights to start from; they are copied.
            refinement: The head's refinement, if it has one; it is not trained.
        """
        self._norm, self._previous_norm = head.norm.float(), head.previous_norm.float()
        self._lm_head = lm_head
        self._refinement = (
            None if refinement is None else FloatRefinement(refinement, head.norm.device)
        )
        self._weights = _floats(weights, head.norm.device)
        self._gradients = [torch.zeros_like(each) for each in self._parts()]
        self._num_examples = 0  # examples that the gradients are summed over
        self._means = [torch.zeros_like(each) for each in self._parts()]
        self._squares = [torch.zeros_like(each) for each in self._parts()]
        self._num_steps = 0

    def restart(self, weights: HeadWeights) -> None:
        """Forget gradients and Adam's state, and start from other weights."""
        for mine, other in zip(self._parts(), _parts(weights), strict=True):
            mine.copy_(other)
        for tensor in (*self._gradients, *self._means, *self._squares):
            tensor.zero_()
        self._num_examples = self._num_steps = 0

    def weights(self) -> HeadWeights:
        """Return a copy of the current weights, in the precision that heads are stored in."""
        parts = zip(WEIGHT_NAMES, self._parts(), strict=True)
        return HeadWeights(
            **{name: part.half() if part.ndim == 2 else part.clone() for name, part in parts}
        )

    def accumulate_gradient(self, examples: Examples, exit_index: int, runs: Tensor) -> None:
        """Add the gradient of the loss of each run's last draft.

        The loss is the cross entropy with the model's distribution. The estimates of earlier drafts
        count as constants.

        Args:
            examples: The examples that the runs are taken from.
            exit_index: Index of the head's exit in the examples.
            runs: [depth + 1, T], see `Examples.runs`.
        """
        draft = self._follow(self._weights, examples, exit_index, runs)
        scale = inverse_rms(draft.state)
        unit = draft.state * scale
        logits = self._logits(self._weights, draft.state, unit)
        errors = logits.softmax(-1) - examples.probs(runs[-1])
        of_unit = self._lm_head.backward(errors[:, :-1]) + errors[:, -1:] * self._weights.other
        of_state = unit_rms_backward(of_unit, unit, scale)
        if self._refinement is not None and draft.refined is not None:
            of_state = self._refinement.backward(draft.refined, of_state)
        project, project_previous, other = self._gradients
        project.addmm_(of_state.T, draft.hidden)
        project_previous.addmm_(of_state.T, draft.previous)
        other += errors[:, -1] @ unit
        self._num_examples += len(unit)

    def step(self) -> bool:
        """Update the weights by the accumulated gradient, and clear it.

        Returns:
            Whether the gradient was finite; if not, the weights stay as they are.
        """
        assert self._num_examples, "no gradient was accumulated"
        for gradient in self._gradients:
            gradient /= self._num_examples
        norm = float(torch.stack([gradient.norm() for gradient in self._gradients]).norm())
        is_sound = norm == norm and norm != float("inf")
        if is_sound:
            self._num_steps += 1
            self._adam(min(1.0, _MOST_NORM / (norm + _TINY)))
        for gradient in self._gradients:
            gradient.zero_()
        self._num_examples = 0
        return is_sound

    def are_right(
        self, weights: HeadWeights | None, examples: Examples, exit_index: int, runs: Tensor
    ) -> Tensor:
        """Return whether the last draft of each run [T] would have been accepted.

        Args:
            weights: Weights to draft with; None: those in training.
            examples: The examples that the runs are taken from.
            exit_index: Index of the head's exit in the examples.
            runs: [depth + 1, T], see `Examples.runs`.
        """
        mine = self._weights if weights is None else _floats(weights, self._norm.device)
        state = self._follow(mine, examples, exit_index, runs).state
        logits = self._logits(mine, state, state * inverse_rms(state))
        best = logits.argmax(-1)
        return (best == examples.targets(runs[-1])) & (best < logits.shape[1] - 1)

    def _follow(
        self, weights: HeadWeights, examples: Examples, exit_index: int, runs: Tensor
    ) -> _Draft:
        """Draft along the runs, up to the last token of each."""
        last = examples.last(runs[0])
        for places in runs[1:]:
            hidden = examples.exit(exit_index, places) * self._norm
            draft = self._estimate(weights, hidden, last * self._previous_norm)
            last = draft.state * inverse_rms(draft.state)
        return draft

    def _estimate(self, weights: HeadWeights, hidden: Tensor, previous: Tensor) -> _Draft:
        state = hidden @ weights.project.T + previous @ weights.project_previous.T
        if self._refinement is None:
            return _Draft(hidden, previous, state, None)
        refined = self._refinement.refine(state)
        return _Draft(hidden, previous, refined.state, refined)

    def _logits(self, weights: HeadWeights, state: Tensor, unit: Tensor) -> Tensor:
        return torch.cat((self._lm_head.logits(state), (unit @ weights.other)[:, None]), dim=1)

    def _adam(self, scale: float) -> None:
        """Apply one Adam update, with gradients multiplied by `scale`.

        Source: Kingma and Ba 2015, arXiv 1412.6980.
        """
        fast, slow = _DECAYS
        rate = _RATE / (1 - fast**self._num_steps)
        correction = (1 - slow**self._num_steps) ** 0.5
        state = zip(self._parts(), self._gradients, self._means, self._squares, strict=True)
        for part, gradient, mean, square in state:
            mean.mul_(fast).add_(gradient, alpha=(1 - fast) * scale)
            square.mul_(slow).addcmul_(gradient, gradient, value=(1 - slow) * scale**2)
            part.addcdiv_(mean, (square.sqrt() / correction).add_(_TINY), value=-rate)

    def _parts(self) -> Sequence[Tensor]:
        return _parts(self._weights)


def _parts(weights: HeadWeights) -> list[Tensor]:
    return [getattr(weights, name) for name in WEIGHT_NAMES]


def _floats(weights: HeadWeights, device: torch.device) -> HeadWeights:
    """Return a copy in float32 on the device."""
    copies = (part.to(device, torch.float32, copy=True) for part in _parts(weights))
    return HeadWeights(**dict(zip(WEIGHT_NAMES, copies, strict=True)))
