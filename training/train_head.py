"""Trains one exit head on the model's final distribution, with drafts unrolled as they are used.

In a run of drafts only the first reads the true previous state; later ones read the head's own
estimate. Training does the same: the loss is the mean over `depth` unrolled drafts, where drafts
after a wrong one weigh less (they would have been rolled back). This module knows tensors only, no
files and no engine.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.worker.learning.unit_rms import unit_rms
from training import gpu
from training.head_module import HeadModule, feature_scale
from training.states import HiddenStates, StateSource

_RIDGE = 1e-3  # ridge penalty, relative to the mean squared input
_FIT_CHUNK = 8192
_STEPS_PER_REPORT = 16  # reading a loss waits for the device, so few are read
_AFTER_WRONG = 0.1  # factor on the weight of the drafts after a wrong one

OnStep = Callable[[int, int, float], None]  # called with steps done, steps in all, loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The hyperparameters of training a head."""

    epochs: int = 6
    learning_rate: float = 1.5e-3
    batch_tokens: int = 512
    depth: int = 3  # unrolled drafts
    warmup_share: float = 0.03
    seed: int = 0
    reads_previous: bool = True  # whether the previous token's last hidden state is an input
    refinement_size: int = 0  # inner size of a gated MLP after the linear part; 0: none


class HeadTrainer:
    """Trains a head in place, epoch by epoch; between epochs its state can be saved."""

    def __init__(self, head: HeadModule, shards: StateSource, config: TrainingConfig) -> None:
        self._head = head
        self._shards = shards
        self._config = config
        self._generator = torch.Generator().manual_seed(config.seed)
        self._trained = list(head.parameters())
        if not config.reads_previous:
            self._trained = [each for each in self._trained if each is not head.project_previous]
        self._optimizer = torch.optim.AdamW(
            self._trained,
            lr=config.learning_rate,
            weight_decay=0.0,
            fused=head.project.device.type == "cuda",
        )
        self._num_epochs = 0
        self._num_steps = 0
        self._total = max(1, shards.num_positions // config.batch_tokens) * config.epochs

    @property
    def is_done(self) -> bool:
        """Whether all epochs are over."""
        return self._num_epochs >= self._config.epochs

    def run_epoch(self, on_step: OnStep | None = None) -> None:
        """Learn from all shards once."""
        config, device = self._config, self._head.project.device
        with gpu.fast_products(device):
            for states in self._shards.groups(self._generator):
                here = states.to(device)
                for start in _chunks(len(here.last), config.batch_tokens, self._generator):
                    loss = self._step(here, start)
                    if on_step is not None and self._num_steps % _STEPS_PER_REPORT == 0:
                        done = min(self._num_steps, self._total)
                        on_step(done, self._total, float(loss))
        self._num_epochs += 1

    def _step(self, states: HiddenStates, start: int) -> Tensor:
        """Update the weights once; return the loss, without waiting for the device."""
        self._set_learning_rate()
        loss = unrolled_loss(self._head, states, start, self._config)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._num_steps += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return what a trainer of the same head, shards and configuration needs to go on."""
        return {
            "head": self._head.trained_tensors(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "num_epochs": self._num_epochs,
            "num_steps": self._num_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state` has returned."""
        self._head.load_state_dict(state["head"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._num_epochs, self._num_steps = state["num_epochs"], state["num_steps"]

    def _set_learning_rate(self) -> None:
        config = self._config
        share = _cosine(self._num_steps, self._total, config.warmup_share)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * share


@torch.no_grad()
def fit_linear(head: HeadModule, states: HiddenStates, *, reads_previous: bool = True) -> None:
    """Initialize a head by ridge regression of the last hidden state on both of its inputs.

    This takes seconds, and gradient steps need to learn only what least squares cannot.
    """
    device, size = head.project.device, head.project.shape[0]

    def pairs(places: Tensor) -> tuple[Tensor, Tensor]:
        inputs = _inputs(head, states, places)
        targets = states.last[places].to(device).float()
        return (inputs if reads_previous else inputs[:, :size]), targets

    weights = _ridge(pairs, states, device)
    head.project.copy_(weights[:size].T)
    if reads_previous:
        head.project_previous.copy_(weights[size:].T)


@torch.no_grad()
def carry_over(head: HeadModule, there: HiddenStates, here: HiddenStates) -> None:
    """Turn a head for one layer into a head for another.

    By ridge regression T learns to give from the new layer's states what it gave from the old
    one's; what the previous token's state adds to that is added to U. All else stays.

    Args:
        there: States at the head's own layer.
        here: States of the same positions at the new layer.
    """
    device, size = head.project.device, head.project.shape[0]
    scale = feature_scale(here.exit).to(device)
    before, head.norm = head.norm, scale

    def pairs(places: Tensor) -> tuple[Tensor, Tensor]:
        given = F.linear(there.exit[places].to(device).float() * before, head.project)
        return _inputs(head, here, places), given

    weights = _ridge(pairs, here, device)
    head.project.copy_(weights[:size].T)
    head.project_previous.add_(weights[size:].T)


def _inputs(head: HeadModule, states: HiddenStates, places: Tensor) -> Tensor:
    """Return both inputs of a head, scaled and concatenated: [T, 2 E]."""
    device = head.project.device
    hidden = states.exit[places].to(device).float() * head.norm
    previous = states.last[places - 1].to(device).float() * head.previous_norm
    return torch.cat((hidden, previous), dim=1)


def _ridge(
    pairs: Callable[[Tensor], tuple[Tensor, Tensor]], states: HiddenStates, device: torch.device
) -> Tensor:
    """Solve a ridge regression over all positions that have a previous one.

    Args:
        pairs: Returns the inputs and the targets at some positions.

    Returns:
        Weights [inputs, outputs].
    """
    is_used = ~states.is_first
    is_used[0] = False
    gram = moment = torch.zeros((), device=device)
    for places in is_used.nonzero().flatten().split(_FIT_CHUNK):
        inputs, targets = pairs(places)
        gram = gram + inputs.T @ inputs
        moment = moment + inputs.T @ targets
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, moment)


def unrolled(
    head: HeadModule, hidden: Tensor, last: Tensor, depth: int
) -> Iterator[tuple[slice, Tensor]]:
    """Unroll a run of `depth` drafts after every position at once.

    Args:
        hidden: [T, E], states of consecutive positions at the exit.
        last: [T, E], states at the last layer; only the first draft of a run reads them.

    Yields:
        For the first, second, … draft of all runs: the slice of the positions that predict it, and
        the estimated last hidden states [T - depth, E] there.
    """
    count = len(hidden) - depth
    previous = last[:count]
    for draft in range(1, depth + 1):
        here = slice(draft, draft + count)
        state = head.state(hidden[here], previous)
        yield here, state
        previous = unit_rms(state)


@dataclass(frozen=True, slots=True)
class Teacher:
    """The model's final distributions at some positions, reduced to what the loss needs."""

    row: Tensor  # [T, E]: mean of the LM head's rows, weighted by the final distribution
    other: Tensor  # [T]: probability of all tokens outside the reduced vocabulary
    best: Tensor  # [T] int64: the most likely column in [0, V'], where V' is "other"

    @classmethod
    @torch.no_grad()
    def of(cls, head: HeadModule, last: Tensor, log_normalizer: Tensor) -> "Teacher":
        """Compute what the loss needs from the last layer's states.

        Args:
            last: [T, E], the last layer's states at unit RMS.
            log_normalizer: [T], logsumexp of the final logits.
        """
        probs, other = _final_probs(head, last, log_normalizer)
        return cls(row=probs @ head.lm_head, other=other, best=_best(probs, other))

    def losses(self, head: HeadModule, state: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of a head's estimates, and whether their best token is right.

        The mean of the head's logits under the model's distribution is one product with `row`, so
        the gradient needs no [T, V'] tensor but the head's own softmax.

        Args:
            state: [T, E], the head's estimates.
            here: The positions that they belong to.

        Returns:
            Two tensors [T].
        """
        unit = unit_rms(state)
        logits, other = F.linear(unit, head.lm_head), unit @ head.other
        normalizer = torch.logaddexp(logits.logsumexp(-1), other)
        mean = (unit * self.row[here]).sum(-1) + self.other[here] * other
        return normalizer - mean, _best(logits.detach(), other.detach()) == self.best[here]


def unrolled_loss(
    head: HeadModule, states: HiddenStates, start: int, config: TrainingConfig
) -> Tensor:
    """Return the mean loss per draft over consecutive positions that begin at `start`."""
    device = head.project.device
    end = min(start + config.batch_tokens + config.depth, len(states.last))
    hidden = states.exit[start:end].to(device).float()
    last = states.last[start:end].to(device).float()
    is_first = states.is_first[start:end].to(device)
    teacher = Teacher.of(head, last, states.log_normalizer[start:end].to(device))
    weight = torch.ones(end - start - config.depth, device=device)
    total, weights = hidden.new_zeros(()), hidden.new_zeros(())
    for here, state in unrolled(head, hidden, last, config.depth):
        weight = weight * ~is_first[here]
        losses, is_right = teacher.losses(head, state, here)
        total = total + (losses * weight).sum()
        weights = weights + weight.sum()
        weight = weight * torch.where(is_right, 1.0, _AFTER_WRONG)
    return total / weights.clamp_min(1.0)


@torch.no_grad()
def teacher_probs(head: HeadModule, last: Tensor, log_normalizer: Tensor) -> Tensor:
    """Return the model's final distribution [T, V' + 1] over the reduced vocabulary and "other"."""
    probs, other = _final_probs(head, last, log_normalizer)
    return torch.cat((probs, other[:, None]), dim=1)


def _final_probs(head: HeadModule, last: Tensor, log_normalizer: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities [T, V'], and that of "other" [T].

    They sum up to 1 although the states were rounded when they were stored.
    """
    probs = (F.linear(last, head.lm_head) - log_normalizer[:, None]).exp_()
    total = probs.sum(-1)
    return probs.div_(total.clamp_min(1.0)[:, None]), (1.0 - total).clamp_min_(0.0)


def _best(values: Tensor, other: Tensor) -> Tensor:
    """Return the column [T] of the greatest of [T, V'], or V' where "other" [T] is greater."""
    best = values.max(-1)
    return torch.where(other > best.values, values.shape[1], best.indices)


def _chunks(length: int, size: int, generator: torch.Generator) -> Iterator[int]:
    """Yield the starts of runs that cover the data once, in random order.

    All starts are shifted by an offset that differs from epoch to epoch.
    """
    most = max(1, min(size, length - size))  # a larger offset could skip most of little data
    offset = int(torch.randint(0, most, (1,), generator=generator))
    starts = torch.arange(offset, max(offset + 1, length - size), size)
    for index in torch.randperm(len(starts), generator=generator).tolist():
        yield int(starts[index])


def _cosine(step: int, total: int, warmup_share: float) -> float:
    warmup = max(1, int(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
