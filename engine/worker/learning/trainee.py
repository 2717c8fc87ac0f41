"""An exit head in training: float weights beside the packed ones that serve.

The big products, with the reduced LM head and its transpose, are the backend's own; the gradient is
written out, so that no graph of the computation is kept. Knows tensors, no traffic and no clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.model.exit_head import WEIGHT_NAMES, ExitHead, HeadWeights, RefinementWeights
from engine.worker.learning.examples import Examples
from engine.worker.learning.refined import FloatRefinement, Refined, inverse_rms, pull_unit

_RATE = 5e-4  # Adam's, for steps of some 32 examples
_DECAYS = (0.9, 0.99)
_TINY = 1e-8
_MOST_NORM = 1.0  # of a gradient, per example


@dataclass(frozen=True, slots=True)
class Lens:
    """The reduced LM head, both ways; shared by all exits."""

    head: ExitHead  # any: has the packed rows and the model's final norm
    back: Any  # [E, V'] packed: the transpose of the rows, the final norm's weight folded in

    @classmethod
    def of(cls, head: ExitHead, rows: Tensor) -> "Lens":
        """Args:
        rows: [V', E] of the LM head.
        """
        folded = rows.float() * head.final_norm.float()
        return cls(head, head.ops.pack_head(folded.T.contiguous()))

    def logits(self, state: Tensor) -> Tensor:
        """Estimated last states [T, E] -> [T, V'] float32."""
        head, ops = self.head, self.head.ops
        state = state.to(ops.dtype)
        logits: Tensor = ops.linear(state, head.lm_head, norm=head.final_norm, eps=head.eps)
        return logits.float()

    def pull(self, errors: Tensor) -> Tensor:
        """Errors of logits [T, V'] -> of unit-RMS states [T, E] float32."""
        ops = self.head.ops
        return ops.linear(errors.to(ops.dtype), self.back).float()


@dataclass(frozen=True, slots=True)
class _Draft:
    """The last draft of each of some runs."""

    hidden: Tensor  # [T, E], scaled input
    previous: Tensor  # [T, E], scaled input
    state: Tensor  # [T, E], as estimated
    refined: Refined | None  # how it came about, where there is a refinement


class Trainee:
    """One exit's head."""

    def __init__(
        self,
        head: ExitHead,
        lens: Lens,
        weights: HeadWeights,
        refinement: RefinementWeights | None = None,
    ) -> None:
        """Args:
        refinement: The head's, if it has one; it does not learn.
        """
        self._norm, self._previous_norm = head.norm.float(), head.previous_norm.float()
        self._lens = lens
        self._refinement = (
            None if refinement is None else FloatRefinement(refinement, head.norm.device)
        )
        self._weights = _floats(weights, head.norm.device)
        self._gradients = [torch.zeros_like(each) for each in self._parts()]
        self._num_examples = 0  # that the gradients are the sum of
        self._means = [torch.zeros_like(each) for each in self._parts()]
        self._squares = [torch.zeros_like(each) for each in self._parts()]
        self._num_steps = 0

    def restart(self, weights: HeadWeights) -> None:
        """Begin again from these."""
        for mine, other in zip(self._parts(), _parts(weights), strict=True):
            mine.copy_(other)
        for tensor in (*self._gradients, *self._means, *self._squares):
            tensor.zero_()
        self._num_examples = self._num_steps = 0

    def weights(self) -> HeadWeights:
        """As they are now: a copy, in the precision that heads are stored in."""
        parts = zip(WEIGHT_NAMES, self._parts(), strict=True)
        return HeadWeights(
            **{name: part.half() if part.ndim == 2 else part.clone() for name, part in parts}
        )

    def study(self, examples: Examples, exit_index: int, runs: Tensor) -> float:
        """Add the gradient of the last draft of each run; the estimates that it reads are as they
        are.

        Args:
            runs: [depth + 1, T], see `Examples.runs`.

        Returns:
            The mean loss.
        """
        draft = self._follow(self._weights, examples, exit_index, runs)
        scale = inverse_rms(draft.state)
        unit = draft.state * scale
        logits = self._logits(self._weights, draft.state, unit)
        probs = examples.probs(runs[-1])
        log_shares = logits.log_softmax(-1)
        errors = log_shares.exp() - probs
        pulled = self._lens.pull(errors[:, :-1]) + errors[:, -1:] * self._weights.other
        pulled = pull_unit(pulled, unit, scale)
        if self._refinement is not None and draft.refined is not None:
            pulled = self._refinement.pull(draft.refined, pulled)
        project, project_previous, other = self._gradients
        project.addmm_(pulled.T, draft.hidden)
        project_previous.addmm_(pulled.T, draft.previous)
        other += errors[:, -1] @ unit
        self._num_examples += len(unit)
        return float(-(probs * log_shares).sum(-1).mean())

    def step(self) -> bool:
        """Change the weights by the gradients gathered; False: those are no numbers."""
        assert self._num_examples, "nothing was studied"
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
        """Whether the last draft of each run [T] would have been accepted.

        Args:
            weights: Of a head of this exit; None: those in training.
        """
        mine = self._weights if weights is None else _floats(weights, self._norm.device)
        state = self._follow(mine, examples, exit_index, runs).state
        logits = self._logits(mine, state, state * inverse_rms(state))
        best = logits.argmax(-1)
        return (best == examples.targets(runs[-1])) & (best < logits.shape[1] - 1)

    def _follow(
        self, weights: HeadWeights, examples: Examples, exit_index: int, runs: Tensor
    ) -> _Draft:
        """One draft after the other, to the last of each run."""
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
        return torch.cat((self._lens.logits(state), (unit @ weights.other)[:, None]), dim=1)

    def _adam(self, scale: float) -> None:
        """Source: Kingma and Ba 2015, arXiv 1412.6980."""
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


def unit_rms(x: Tensor) -> Tensor:
    """x [..., E] in float32, scaled to root-mean-square 1 along the last dimension."""
    x = x.float()
    return x * inverse_rms(x)


def _parts(weights: HeadWeights) -> list[Tensor]:
    return [getattr(weights, name) for name in WEIGHT_NAMES]


def _floats(weights: HeadWeights, device: torch.device) -> HeadWeights:
    """A copy in float32, on the device."""
    copies = (part.to(device, torch.float32, copy=True) for part in _parts(weights))
    return HeadWeights(**dict(zip(WEIGHT_NAMES, copies, strict=True)))
