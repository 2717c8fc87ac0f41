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

import torch
import torch.nn.functional as F
from torch import Tensor

from training.collect import HiddenStates, Shards, unit_rms
from training.head_module import HeadModule

_RIDGE = 1e-3  # of the mean squared input
_FIT_CHUNK = 8192
_AFTER_WRONG = 0.1  # weight of a draft behind a wrong one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how hard."""

    epochs: int = 6
    learning_rate: float = 1.5e-3
    batch_tokens: int = 512
    depth: int = 3  # unrolled drafts
    warmup_share: float = 0.03
    seed: int = 0


def train_head(
    head: HeadModule,
    shards: Shards,
    config: TrainingConfig,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train in place.

    Args:
        on_step: Called with (steps done, steps in all, loss).
    """
    generator = torch.Generator().manual_seed(config.seed)
    fit_linear(head, next(shards.groups()))
    trained = [head.project, head.project_previous, head.other]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    steps_per_epoch = max(1, shards.num_positions // config.batch_tokens)
    total = steps_per_epoch * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _cosine(step, total, config.warmup_share)
    )
    done = 0
    for states in _epochs(shards, config.epochs, generator):
        for start in _chunks(len(states.last), config.batch_tokens, generator):
            loss = unrolled_loss(head, states, start, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if on_step is not None:
                on_step(min(done, total), total, float(loss.detach()))


@torch.no_grad()
def fit_linear(head: HeadModule, states: HiddenStates) -> None:
    """Start from the ridge regression of the last hidden state on both inputs.

    It takes seconds and leaves the gradient steps only what least squares cannot see.
    """
    device, size = head.project.device, head.project.shape[0]
    gram = torch.zeros(2 * size, 2 * size, device=device)
    moment = torch.zeros(2 * size, size, device=device)
    is_used = ~states.is_first
    is_used[0] = False
    for places in is_used.nonzero().flatten().split(_FIT_CHUNK):
        hidden = states.exit[places].to(device).float() * head.norm
        previous = states.last[places - 1].to(device).float() * head.previous_norm
        inputs = torch.cat((hidden, previous), dim=1)
        gram += inputs.T @ inputs
        moment += inputs.T @ states.last[places].to(device).float()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, moment)
    head.project.copy_(weights[:size].T)
    head.project_previous.copy_(weights[size:].T)


def unrolled_loss(
    head: HeadModule, states: HiddenStates, start: int, config: TrainingConfig
) -> Tensor:
    """Mean loss per draft over a run of consecutive positions beginning at `start`."""
    device = head.project.device
    end = min(start + config.batch_tokens + config.depth, len(states.last))
    hidden = states.exit[start:end].to(device).float()
    last = states.last[start:end].to(device).float()
    is_first = states.is_first[start:end].to(device)
    probs = teacher_probs(head, last, states.log_normalizer[start:end].to(device))

    # Draft number d of the run that began at position i stands at position i + d: shift as the run
    # unrolls.
    count = end - start - config.depth
    previous = last[:count]
    weight = torch.ones(count, device=device)
    total, weights = hidden.new_zeros(()), hidden.new_zeros(())
    for draft in range(1, config.depth + 1):
        here = slice(draft, draft + count)
        weight = weight * ~is_first[here]
        state = head.state(hidden[here], previous)
        logits = head.logits(state)
        losses = F.cross_entropy(logits, probs[here], reduction="none")
        total = total + (losses * weight).sum()
        weights = weights + weight.sum()
        with torch.no_grad():
            is_right = logits.argmax(-1) == probs[here].argmax(-1)
            weight = weight * torch.where(is_right, 1.0, _AFTER_WRONG)
        previous = unit_rms(state)
    return total / weights.clamp_min(1.0)


@torch.no_grad()
def teacher_probs(head: HeadModule, last: Tensor, log_normalizer: Tensor) -> Tensor:
    """The model's final distribution [T, V' + 1] on the reduced vocabulary, the rest summed up
    in "other".
    """
    logits = F.linear(last, head.lm_head)
    probs = (logits - log_normalizer[:, None]).exp()
    other = (1.0 - probs.sum(-1, keepdim=True)).clamp_min(0.0)
    return torch.cat((probs, other), dim=1)


def _epochs(shards: Shards, count: int, generator: torch.Generator) -> Iterator[HiddenStates]:
    for _ in range(count):
        yield from shards.groups(generator)


def _chunks(length: int, size: int, generator: torch.Generator) -> Iterator[int]:
    """Starts of consecutive runs that cover the data once, in random order, shifted differently
    every epoch.
    """
    offset = int(torch.randint(0, size, (1,), generator=generator))
    starts = torch.arange(offset, max(offset + 1, length - size), size)
    for index in torch.randperm(len(starts), generator=generator).tolist():
        yield int(starts[index])


def _cosine(step: int, total: int, warmup_share: float) -> float:
    warmup = max(1, int(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
