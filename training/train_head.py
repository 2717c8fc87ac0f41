"""Trains one exit head: KL to the model's final distribution, with drafts unrolled as they are
used.

In a run of drafts only the first has the true previous state; later ones read the head's own
estimate. Training does the same: the loss is summed over `depth` unrolled drafts, the later ones
weighted down where an earlier draft of the run was wrong (they would have been rolled back). Knows
tensors only; no files, no engine.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.worker.learning.trainee import unit_rms
from training import gpu
from training.head_module import HeadModule, feature_scale
from training.states import HiddenStates, StateSource

_RIDGE = 1e-3  # of the mean squared input
_FIT_CHUNK = 8192
_STEPS_PER_REPORT = 16  # to know a loss is to wait for it
_AFTER_WRONG = 0.1  # weight of a draft behind a wrong one

OnStep = Callable[[int, int, float], None]  # steps done, steps in all, loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how hard."""

    epochs: int = 6
    learning_rate: float = 1.5e-3
    batch_tokens: int = 512
    depth: int = 3  # unrolled drafts
    warmup_share: float = 0.03
    seed: int = 0
    reads_previous: bool = True  # the last state of the token before is an input
    refinement_size: int = 0  # of the inner layer of a gated MLP behind the linear part; 0: none


class HeadTrainer:
    """Trains a head in place, epoch by epoch. What it is between two of them can be kept."""

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
        """One change of the weights; the loss, for which nobody has waited."""
        self._set_learning_rate()
        loss = unrolled_loss(self._head, states, start, self._config)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._num_steps += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """All that a trainer of the same head, shards and configuration needs to go on."""
        return {
            "head": self._head.trained_tensors(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "num_epochs": self._num_epochs,
            "num_steps": self._num_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
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
    """Start from the ridge regression of the last hidden state on both inputs.

    It takes seconds and leaves the gradient steps only what least squares cannot see.
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
    """Turn a head for one layer into a head for another: T gives from the states here, as well as
    ridge regression can, what it gave from those there, the previous state helping; all else stays.

    Args:
        there: States at the head's layer.
        here: The same positions' at the other one.
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
    """Both inputs [T, 2 E] of a head, scaled."""
    device = head.project.device
    hidden = states.exit[places].to(device).float() * head.norm
    previous = states.last[places - 1].to(device).float() * head.previous_norm
    return torch.cat((hidden, previous), dim=1)


def _ridge(
    pairs: Callable[[Tensor], tuple[Tensor, Tensor]], states: HiddenStates, device: torch.device
) -> Tensor:
    """Weights [inputs, outputs] of the ridge regression over all positions that have one before.

    Args:
        pairs: Positions -> inputs and targets there.
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
    """Drafts as they follow one another: where the draft number 1, 2, … `depth` of the runs that
    begin behind each position stands, and its estimated state [T - depth, E].

    Args:
        hidden: [T, E] at the exit, consecutive positions.
        last: [T, E], the last layer's: only the first draft of a run reads it.
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
    """What the model itself says at some positions, as far as the loss needs it: the whole
    distributions need not be kept.
    """

    row: Tensor  # [T, E]: the LM head's rows, averaged as the final distribution weighs them
    other: Tensor  # [T]: the probability of what is outside the reduced vocabulary
    best: Tensor  # [T] int64: the most likely of [0, V'], V' for "other"

    @classmethod
    @torch.no_grad()
    def of(cls, head: HeadModule, last: Tensor, log_normalizer: Tensor) -> "Teacher":
        """Args:
        last: [T, E], the last layer's states at unit RMS.
        log_normalizer: [T]
        """
        probs, other = _final_probs(head, last, log_normalizer)
        return cls(row=probs @ head.lm_head, other=other, best=_best(probs, other))

    def losses(self, head: HeadModule, state: Tensor, here: slice) -> tuple[Tensor, Tensor]:
        """Cross entropy [T] of a head's estimates [T, E] to the positions `here`, and whether their
        best tokens are the model's [T].

        The model's mean logit is one product with its mean row, so that of all [T, V'] numbers the
        gradient needs the head's own softmax only.
        """
        unit = unit_rms(state)
        logits, other = F.linear(unit, head.lm_head), unit @ head.other
        normalizer = torch.logaddexp(logits.logsumexp(-1), other)
        mean = (unit * self.row[here]).sum(-1) + self.other[here] * other
        return normalizer - mean, _best(logits.detach(), other.detach()) == self.best[here]


def unrolled_loss(
    head: HeadModule, states: HiddenStates, start: int, config: TrainingConfig
) -> Tensor:
    """Mean loss per draft over a run of consecutive positions beginning at `start`."""
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
    """The model's final distribution [T, V' + 1] on the reduced vocabulary, the rest summed up
    in "other".
    """
    probs, other = _final_probs(head, last, log_normalizer)
    return torch.cat((probs, other[:, None]), dim=1)


def _final_probs(head: HeadModule, last: Tensor, log_normalizer: Tensor) -> tuple[Tensor, Tensor]:
    """[T, V'], and "other" [T]; with it they sum up to 1, though states are kept rounded."""
    probs = (F.linear(last, head.lm_head) - log_normalizer[:, None]).exp_()
    total = probs.sum(-1)
    return probs.div_(total.clamp_min(1.0)[:, None]), (1.0 - total).clamp_min_(0.0)


def _best(values: Tensor, other: Tensor) -> Tensor:
    """[T]: the column of the greatest of [T, V'], or V' if "other" [T] is greater."""
    best = values.max(-1)
    return torch.where(other > best.values, values.shape[1], best.indices)


def _chunks(length: int, size: int, generator: torch.Generator) -> Iterator[int]:
    """Starts of consecutive runs that cover the data once, in random order, shifted differently
    every epoch.
    """
    most = max(1, min(size, length - size))  # or little data would be shifted out of sight
    offset = int(torch.randint(0, most, (1,), generator=generator))
    starts = torch.arange(offset, max(offset + 1, length - size), size)
    for index in torch.randperm(len(starts), generator=generator).tolist():
        yield int(starts[index])


def _cosine(step: int, total: int, warmup_share: float) -> float:
    warmup = max(1, int(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
